// Module entry: the exported names, nothing else. Their types stand in lib/native/binding.ts.
#include "bindings/exports.h"
#include "bindings/napi_setup.h"

namespace sifcrypt {

static Napi::Object Init(Napi::Env env, Napi::Object exports) {
  exports.Set("luksPrepare", Napi::Function::New<LuksPrepare>(env));
  exports.Set("luksFormat", Napi::Function::New<LuksFormat>(env));
  exports.Set("luksUnlock", Napi::Function::New<LuksUnlock>(env));
  exports.Set("luksAddKeyslots", Napi::Function::New<LuksAddKeyslots>(env));
  exports.Set("derivePkcs12", Napi::Function::New<DerivePkcs12Key>(env));
  exports.Set("listArchive", Napi::Function::New<ListArchive>(env));
  exports.Set("readBlob", Napi::Function::New<ReadBlobBytes>(env));
  exports.Set("checkLayer", Napi::Function::New<CheckLayer>(env));
  exports.Set("checkCiphertext", Napi::Function::New<CheckEncrypted>(env));
  exports.Set("buildTree", Napi::Function::New<BuildTree>(env));
  exports.Set("openTree", Napi::Function::New<OpenTree>(env));
  exports.Set("fillScratch", Napi::Function::New<FillScratch>(env));
  exports.Set("publishFile", Napi::Function::New<PublishFile>(env));
  exports.Set("lockFile", Napi::Function::New<LockFile>(env));
  exports.Set("lockRange", Napi::Function::New<LockRange>(env));
  exports.Set("wipeRange", Napi::Function::New<WipeRange>(env));
  exports.Set("unmountPath", Napi::Function::New<UnmountPath>(env));
  exports.Set("writeVerity", Napi::Function::New<WriteVerity>(env));
  exports.Set("checkVerity", Napi::Function::New<CheckVerity>(env));
  exports.Set("readStored", Napi::Function::New<ReadStored>(env));
  exports.Set("forbidDumps", Napi::Function::New<ForbidDumps>(env));
  exports.Set("secretMemory", Napi::Function::New<SecretMemory>(env));
  exports.Set("peerOf", Napi::Function::New<PeerOf>(env));
  exports.Set("connectIn", Napi::Function::New<ConnectIn>(env));
  exports.Set("exitNow", Napi::Function::New<ExitNow>(env));
  exports.Set("endAfterSignals", Napi::Function::New<EndAfterSignals>(env));
  exports.Set("overwriteFreed", Napi::Function::New<OverwriteFreed>(env));
  exports.Set("memoryFile", Napi::Function::New<MakeMemoryFile>(env));
  exports.Set("filledPipe", Napi::Function::New<FillPipe>(env));
  exports.Set("openPipe", Napi::Function::New<OpenPipe>(env));
  exports.Set("startProgram", Napi::Function::New<StartProgram>(env));
  exports.Set("waitForProgram", Napi::Function::New<WaitForProgram>(env));
  exports.Set("holdSignals", Napi::Function::New<HoldSignals>(env));
  exports.Set("signalProcess", Napi::Function::New<SendSignal>(env));
  exports.Set("becomeProgram", Napi::Function::New<BecomeProgram>(env));
  exports.Set("openTerminal", Napi::Function::New<OpenTerminal>(env));
  exports.Set("setTerminalSize", Napi::Function::New<SetTerminalSize>(env));
  return exports;
}

NODE_API_MODULE(sifcrypt, Init)

}  // namespace sifcrypt
