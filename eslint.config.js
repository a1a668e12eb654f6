import tsdoc from "eslint-plugin-tsdoc"
import { defineConfig } from "eslint/config"
import tseslint from "typescript-eslint"

// Who may import whom: cli → index → container, runtime, build → sif, key, device → native; errors and units: anyone.
// A folder may import itself, what is named here, and packages.
const layers = {
  sif: [],
  key: [],
  native: [],
  http: [],
  device: ["native"],
  signing: ["sif", "key", "device", "http"],
  container: ["sif", "key", "device", "native", "signing", "runtime", "build"],
  runtime: ["sif", "key", "device", "native", "container", "build"],
  oci: ["key", "native", "http"],
  build: ["sif", "key", "device", "native", "container", "runtime", "oci"],
}

function layer(folder, files = `lib/${folder}/**/*.ts`, allowed = layers[folder]) {
  const forbidden = ["index", "cli", ...Object.keys(layers)].filter(
    (other) => other !== folder && !allowed.includes(other),
  )
  return {
    files: [files],
    rules: {
      "no-restricted-imports": [
        "error",
        {
          patterns: [
            {
              regex: `^(\\.\\./)+(${forbidden.join("|")})(/|\\.ts$)`,
              message: `${folder}/ may import ${["errors", "units", ...allowed].join(", ")} and nothing else of ours (docs/architecture.md).`,
            },
          ],
        },
      ],
    },
  }
}

// node-forge has had flaw after flaw in RSA, signatures and certificate chains, all of which node:crypto does.
const forgeMessage =
  "node-forge cuts and puts together ASN.1 and PEM; RSA, signatures and chains are node:crypto's."
const forgeUses = [
  "MemberExpression[property.name='pki']",
  "MemberExpression[object.name='pki']",
  "MemberExpression[object.name='rsa'][property.name=/^(encrypt|decrypt|generateKeyPair|set(Public|Private)Key)$/]",
  "MemberExpression[property.name='verifyCertificateChain']",
]

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
  ...Object.keys(layers).map((folder) => layer(folder)),
  // Only who changes an image needs the addon, for the lock.
  layer("sif", "lib/sif/change.ts", ["native"]),
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
      "no-restricted-syntax": [
        "error",
        ...forgeUses.map((selector) => ({ selector, message: forgeMessage })),
      ],
    },
  },
  {
    files: ["lib/errors.ts", "lib/units.ts"],
    rules: {
      "no-restricted-imports": [
        "error",
        { patterns: [{ regex: "^\\.", message: "a leaf imports nothing." }] },
      ],
    },
  },
  {
    files: ["lib/cli/**/*.ts"],
    rules: {
      "no-console": "off",
      "no-restricted-imports": [
        "error",
        {
          patterns: [
            {
              regex: `^(\\.\\./)+(${[...Object.keys(layers), "errors", "units"].join("|")})(/|\\.ts$)`,
              message: "cli/ imports the public API only: what a command can do, a program can do.",
            },
          ],
        },
      ],
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
