// Blobs of images: files of their own, or members of an archive that may be compressed.
#pragma once

#include <memory>

#include "bindings/convert.h"
#include "core/byte_range.h"

namespace sifcrypt {

/// NativeBlob, see lib/native/binding.ts. The descriptor is duplicated.
std::shared_ptr<const ByteSource> ReadBlob(const Napi::Object& blob);

}  // namespace sifcrypt
