// What the process that builds and the one in its workspace say to each other. Descriptors are the receiver's; secrets go
// through a pipe of their own, in the order in which messages speak of them.
import type { NativeBuild } from "../native/binding.ts"
import type { Bytes } from "../units.ts"
import type { AddedEntry, ImageDescription } from "../source/metadata-files.ts"
import type { StagesPlan } from "./stages.ts"
import type { WireError } from "./wire-error.ts"

/** What a Debian system is installed from. */
export interface Debootstrap {
  readonly program: string
  readonly suite: string
  readonly mirror: string
  readonly include: readonly string[]
  /** Debian's name. */
  readonly architecture: string
  /** Nothing is installed whose keys are not known. */
  readonly verified: boolean
}

/** What a stage starts from. */
export type StageBase =
  | { readonly kind: "scratch" }
  | {
      readonly kind: "tree"
      readonly source: NativeBuild["source"]
      readonly added: readonly AddedEntry[]
      readonly name: string
    }
  | { readonly kind: "debootstrap"; readonly options: Debootstrap }

/** Whom the workspace knows. */
export interface Ids {
  /** More ids than one, so owners can be kept. */
  readonly many: boolean
  /** Root is root of the machine, too. */
  readonly real: boolean
}

export type Request =
  | {
      readonly kind: "stages"
      readonly plan: StagesPlan
      readonly bases: readonly StageBase[]
      /** What `%files` takes, where that was sent here. */
      readonly files?: StageBase | undefined
      readonly ids: Ids
    }
  /** The answer to `filled`, where that may be used. */
  | { readonly kind: "use" }
  | { readonly kind: "write"; readonly build: Omit<NativeBuild, "source"> }
  | { readonly kind: "copy"; readonly target: string; readonly replace: boolean }

export type Reply =
  /** The root of a stage is read from its base, which nothing was done with yet. */
  | { readonly kind: "filled"; readonly stage: number }
  | { readonly kind: "step"; readonly text: string }
  | { readonly kind: "notice"; readonly text: string }
  | { readonly kind: "progress"; readonly bytes: Bytes; readonly total?: Bytes | undefined }
  | { readonly kind: "done"; readonly value: unknown }
  | { readonly kind: "failed"; readonly error: WireError }

/** The answer to `stages`. */
export interface Built {
  readonly description: ImageDescription
}

/** The answer to `copy`. */
export interface Copied {
  readonly entries: number
  readonly bytes: Bytes
}
