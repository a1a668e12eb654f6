// A note in the addon and in each program: which sources they were made of (scripts/native-digest.sh). Who loads one reads it first
// (lib/native/sources-note.ts), and refuses what belongs to other sources.
#include "native_digest.h"

// elf(5), PT_NOTE: sizes of name and value, type, name, value. In assembly, for it has no other way into a file that nothing refers to.
__asm__(
    ".pushsection .note.sifcrypt, \"a\", %note\n"
    ".balign 4\n"
    ".long 9, 64, 1\n"
    ".asciz \"sifcrypt\"\n"
    ".balign 4\n"
    ".ascii \"" SIFCRYPT_NATIVE_DIGEST
    "\"\n"
    ".popsection\n");
