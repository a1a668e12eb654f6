// What native/addon.cc exports; each is one whole operation in a file of this folder.
#pragma once

#include "bindings/napi_setup.h"

namespace sifcrypt {

Napi::Value LuksPrepare(const Napi::CallbackInfo& info);      // luks.cc
Napi::Value LuksFormat(const Napi::CallbackInfo& info);       // luks.cc
Napi::Value LuksUnlock(const Napi::CallbackInfo& info);       // luks.cc
Napi::Value LuksAddKeyslots(const Napi::CallbackInfo& info);  // luks.cc
Napi::Value DerivePkcs12Key(const Napi::CallbackInfo& info);  // pkcs12.cc
Napi::Value ListArchive(const Napi::CallbackInfo& info);      // archive.cc
Napi::Value ReadBlobBytes(const Napi::CallbackInfo& info);    // archive.cc
Napi::Value CheckLayer(const Napi::CallbackInfo& info);       // archive.cc
Napi::Value CheckEncrypted(const Napi::CallbackInfo& info);   // archive.cc
Napi::Value BuildTree(const Napi::CallbackInfo& info);        // build.cc
Napi::Value FillScratch(const Napi::CallbackInfo& info);      // build.cc
Napi::Value OpenTree(const Napi::CallbackInfo& info);         // tree.cc
Napi::Value PublishFile(const Napi::CallbackInfo& info);      // publish.cc
Napi::Value LockFile(const Napi::CallbackInfo& info);         // publish.cc
Napi::Value LockRange(const Napi::CallbackInfo& info);        // publish.cc
Napi::Value WipeRange(const Napi::CallbackInfo& info);        // publish.cc
Napi::Value UnmountPath(const Napi::CallbackInfo& info);      // publish.cc
Napi::Value WriteVerity(const Napi::CallbackInfo& info);      // verity.cc
Napi::Value CheckVerity(const Napi::CallbackInfo& info);      // verity.cc
Napi::Value ReadStored(const Napi::CallbackInfo& info);       // verity.cc
Napi::Value ForbidDumps(const Napi::CallbackInfo& info);      // process.cc
Napi::Value SecretMemory(const Napi::CallbackInfo& info);     // process.cc
Napi::Value PeerOf(const Napi::CallbackInfo& info);           // process.cc
Napi::Value ConnectIn(const Napi::CallbackInfo& info);        // process.cc
Napi::Value ExitNow(const Napi::CallbackInfo& info);          // process.cc
Napi::Value EndAfterSignals(const Napi::CallbackInfo& info);  // process.cc
Napi::Value OverwriteFreed(const Napi::CallbackInfo& info);   // process.cc
Napi::Value MakeMemoryFile(const Napi::CallbackInfo& info);   // process.cc
Napi::Value FillPipe(const Napi::CallbackInfo& info);         // process.cc
Napi::Value OpenPipe(const Napi::CallbackInfo& info);         // process.cc
Napi::Value StartProgram(const Napi::CallbackInfo& info);     // process.cc
Napi::Value WaitForProgram(const Napi::CallbackInfo& info);   // process.cc
Napi::Value HoldSignals(const Napi::CallbackInfo& info);      // process.cc
Napi::Value BecomeProgram(const Napi::CallbackInfo& info);    // process.cc
Napi::Value SendSignal(const Napi::CallbackInfo& info);       // process.cc
Napi::Value OpenTerminal(const Napi::CallbackInfo& info);     // process.cc
Napi::Value SetTerminalSize(const Napi::CallbackInfo& info);  // process.cc

}  // namespace sifcrypt
