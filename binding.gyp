{
  "target_defaults": {
    "include_dirs": ["native"],
    "defines": ["_FILE_OFFSET_BITS=64", "_GNU_SOURCE"],
    "cflags": ["-fvisibility=hidden", "-fstack-protector-strong", "-Wall", "-Wextra", "-Wno-missing-field-initializers"],
    "cflags!": ["-fno-exceptions"],
    "cflags_cc!": ["-fno-exceptions", "-fno-rtti", "-std=gnu++17", "-std=gnu++1y"],
    "cflags_cc": ["-std=c++20", "-fexceptions"]
  },
  "targets": [
    {
      "target_name": "native-digest",
      "type": "none",
      "hard_dependency": 1,
      "actions": [
        {
          "action_name": "digest",
          "inputs": ["scripts/native-digest.sh", "<!@(find native -type f | LC_ALL=C sort)"],
          "outputs": ["<(SHARED_INTERMEDIATE_DIR)/native_digest.h"],
          "action": ["scripts/native-digest.sh", "--header", "<(SHARED_INTERMEDIATE_DIR)/native_digest.h"]
        }
      ],
      "direct_dependent_settings": { "include_dirs": ["<(SHARED_INTERMEDIATE_DIR)"] }
    },
    {
      "target_name": "core",
      "type": "static_library",
      "standalone_static_library": 1,
      "cflags": ["-fPIC"],
      "sources": ["<!@(grep ^native/core/ native/sources.txt)"]
    },
    {
      "target_name": "sifcrypt",
      "dependencies": ["core", "native-digest"],
      "include_dirs": ["<!(node -p \"require('node-addon-api').include_dir\")"],
      "sources": ["<!@(grep -E '^native/(bindings/|addon)' native/sources.txt)", "native/sources_note.cc"],
      "libraries": ["<!@(scripts/static-libraries.sh addon)"],
      "ldflags": ["-Wl,-z,relro,-z,now,-z,nodelete", "-Wl,--exclude-libs,ALL"]
    },
    {
      "target_name": "sifcrypt-starter",
      "type": "executable",
      "dependencies": ["core", "native-digest"],
      "cflags": ["-fPIE"],
      "sources": ["<!@(grep ^native/starter/ native/sources.txt)", "native/sources_note.cc"],
      "libraries": ["<!@(scripts/static-libraries.sh starter)"],
      "ldflags": ["-pie", "-Wl,-z,relro,-z,now", "-static-libstdc++", "-static-libgcc"]
    },
    {
      "target_name": "sifcrypt-init",
      "type": "executable",
      "dependencies": ["native-digest"],
      "sources": ["native/init/init.cc", "native/sources_note.cc"],
      "ldflags": ["-static"],
      "ldflags!": ["-rdynamic"]
    },
    {
      "target_name": "sifcrypt-shell",
      "type": "none",
      "dependencies": ["native-digest"],
      "actions": [
        {
          "action_name": "build",
          "inputs": ["scripts/build-shell.sh", "<(SHARED_INTERMEDIATE_DIR)/native_digest.h"],
          "outputs": ["<(PRODUCT_DIR)/sifcrypt-shell"],
          "action": ["scripts/build-shell.sh", "<(PRODUCT_DIR)/sifcrypt-shell"]
        }
      ]
    }
  ]
}
