#!/bin/sh
# The libraries that are linked statically into what we ship: `addon` or `starter`. Node itself gives the addon OpenSSL's
# EVP functions and zlib; the starter, a program of its own, carries libcrypto. One list for binding.gyp and CMakeLists.txt.
set -eu
# What is shipped runs where another C++ runtime is installed, or none.
runtime=${SIFCRYPT_STATIC_RUNTIME:+-static-libstdc++ -static-libgcc}
codecs="-l:libdeflate.a -l:libzstd.a -l:liblz4.a -l:liblzma.a"
case ${1:-} in
  addon) echo "$codecs -ldl -lpthread $runtime" ;;
  starter) echo "$codecs -l:libfuse3.a -l:libcrypto.a -ldl -lpthread $runtime" ;;
  *) echo "usage: $0 addon|starter" >&2; exit 2 ;;
esac
