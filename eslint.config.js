import tsdoc from "eslint-plugin-tsdoc"
import { defineConfig } from "eslint/config"
import tseslint from "typescript-eslint"

// Who may import whom: a folder imports what stands left of it, itself and packages. docs/architecture.md draws this list.
export const order = [
  ["units"],
  [
    "arguments",
    "bounded-file",
    "caller-environment",
    "disposal",
    "errors",
    "json",
    "outside-program",
    "printable",
    "turns",
  ],
  ["http", "native", "yaml-reader"],
  ["key"],
  ["ocicrypt"],
  ["device", "oci", "sif"],
  ["file"],
  ["registry"],
  ["signing"],
  ["encryption"],
  ["runtime"],
  ["container"],
  ["source"],
  ["definition"],
  ["remote"],
  ["make"],
  ["batch", "compose"],
  ["index"],
  ["cli"],
]
/** What imports next to nothing. */
const leaves = order.slice(0, 2).flat()
const files = [...leaves, "yaml-reader", "index"]
/** What imports less than all that stands left of it. Tables and keys are read where nothing native is installed, save PKCS#12. */
const narrower = {
  sif: leaves,
  key: [...leaves, "native"],
  // Whatever the command can do, a program can do; how text of others is shown is the same for both.
  cli: ["index", "printable"],
}

const layers = order.flatMap((names, place) =>
  names.map((name) => {
    const allowed = narrower[name] ?? order.slice(0, place).flat()
    const forbidden = order.flat().filter((other) => other !== name && !allowed.includes(other))
    const isFile = (other) => files.includes(other)
    const ways = [
      `(${forbidden.filter((other) => !isFile(other)).join("|")})/`,
      `(${forbidden.filter(isFile).join("|")})\\.ts$`,
    ]
    return {
      files: [isFile(name) ? `lib/${name}.ts` : `lib/${name}/**/*.ts`],
      rules: {
        "no-restricted-imports": [
          "error",
          {
            patterns: [
              {
                regex: `^\\.{1,2}/(\\.\\./)*(${ways.join("|")})`,
                message: `${name} may import ${allowed.join(", ") || "nothing"} of ours (docs/architecture.md).`,
              },
            ],
          },
        ],
      },
    }
  }),
)

// node-forge has had flaw after flaw in RSA, signatures and certificate chains, all of which node:crypto does.
const forgeMessage =
  "node-forge cuts and puts together ASN.1 and PEM; RSA, signatures and chains are node:crypto's."
const forgeUses = [
  "MemberExpression[property.name='pki']",
  "MemberExpression[object.name='pki']",
  "MemberExpression[object.name='rsa'][property.name=/^(encrypt|decrypt|generateKeyPair|set(Public|Private)Key)$/]",
  "MemberExpression[property.name='verifyCertificateChain']",
]

// A key of a stranger can end the process (lib/key/admission.ts says how). Making one of another KeyObject is harmless.
const admissionMessage =
  "keys and certificates come in through lib/key/admission.ts, which looks at them first."
const uncheckedKeys = [
  "CallExpression[callee.name=/^create(Public|Private)Key$/][arguments.0.type='ObjectExpression']",
  "NewExpression[callee.name='X509Certificate']",
]

function restrictedSyntax(selectors) {
  return ["error", ...selectors.map(([selector, message]) => ({ selector, message }))]
}

const forgeSyntax = forgeUses.map((selector) => [selector, forgeMessage])

export default defineConfig(
  { ignores: ["node_modules/", "build/", "build-*/", "dist/", "docs/api/", "prebuilds/"] },
  {
    files: ["**/*.ts"],
    extends: [tseslint.configs.strictTypeChecked],
    plugins: { tsdoc },
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      "tsdoc/syntax": "error",
      eqeqeq: "error",
      "no-console": "error",
      "no-control-regex": "error",
      "@typescript-eslint/restrict-template-expressions": ["error", { allowNumber: true }],
      "@typescript-eslint/consistent-type-imports": ["error", { fixStyle: "inline-type-imports" }],
    },
  },
  ...layers,
  {
    files: ["lib/**/*.ts"],
    rules: {
      "@typescript-eslint/no-restricted-imports": [
        "error",
        {
          patterns: [
            {
              regex: "^node-forge(?!/lib/(asn1|pem|rc2|util)\\.js$)",
              allowTypeImports: true,
              message: forgeMessage,
            },
          ],
        },
      ],
      "no-restricted-syntax": restrictedSyntax([
        ...forgeSyntax,
        ...uncheckedKeys.map((selector) => [selector, admissionMessage]),
      ]),
    },
  },
  {
    files: ["lib/key/admission.ts", "lib/key/certificate.ts"],
    rules: { "no-restricted-syntax": restrictedSyntax(forgeSyntax) },
  },
  {
    files: ["lib/cli/**/*.ts"],
    rules: {
      "no-console": "off",
    },
  },
  {
    files: ["test/**/*.ts", "bench/**/*.ts", "scripts/**/*.ts"],
    rules: {
      "no-console": "off",
      // mocha's describe and it return what nobody awaits; hostile input is made by breaking types on purpose.
      "@typescript-eslint/no-floating-promises": [
        "error",
        { allowForKnownSafeCalls: [{ from: "package", package: "mocha", name: ["describe", "it"] }] },
      ],
      "@typescript-eslint/no-non-null-assertion": "off",
      "@typescript-eslint/no-unsafe-assignment": "off",
      "@typescript-eslint/no-unsafe-member-access": "off",
      "@typescript-eslint/no-unsafe-argument": "off",
      "@typescript-eslint/require-await": "off",
    },
  },
)
