// Blobs of images: files of their own, or members of an archive that may be compressed.
#pragma once

#include <memory>

#include "bindings/convert.h"
#include "core/layer_stream.h"

namespace sifcrypt {

/// A compressed archive that several blobs lie in, which are read one after the other: one decoder for all of them.
struct SharedArchive {
  int fd = -1;
  std::shared_ptr<const ByteSource> content;
  /// Told of what is decoded.
  std::shared_ptr<ReadProgress> decoded = std::make_shared<ReadProgress>();
};

/// NativeBlob, see lib/native/binding.ts. The descriptor is duplicated.
std::shared_ptr<const ByteSource> ReadBlob(const Napi::Object& blob, SharedArchive& shared);

}  // namespace sifcrypt
