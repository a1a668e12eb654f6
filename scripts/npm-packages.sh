#!/bin/bash
# Brings node_modules to what package-lock.json says; where it is that already, nothing happens.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
! cmp -s package-lock.json node_modules/.installed-lock.json || exit 0
npm ci --no-audit --no-fund
cp package-lock.json node_modules/.installed-lock.json
