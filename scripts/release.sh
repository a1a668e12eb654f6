#!/bin/bash
# Makes the commit of a release, `release: X.Y.Z`: version, date in CHANGELOG.md, prebuilt files, the table of docs/building.md.
# It tags, pushes and publishes nothing; what comes then, it says at its end.
#
#   release.sh X.Y.Z            in a clean clone of main, as root (the table needs roots to install in)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
version=${1:-}
stop() { echo "release: $*" >&2; exit 1; }
[[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || { echo "usage: $0 X.Y.Z" >&2; exit 2; }
[[ -z $(git status --porcelain) ]] || stop "there is something that is not committed"
[[ $(git branch --show-current) == main ]] || stop "this is not main"
current=$(node -p 'require("./package.json").version')
[[ $current != "$version" && $(printf '%s\n' "$current" "$version" | sort -V | tail -n 1) == "$version" ]] ||
  stop "$version does not come after $current"
grep -q '^## Unreleased$' CHANGELOG.md || stop "CHANGELOG.md has no '## Unreleased'"

trap '[[ $? -eq 0 ]] || echo "release: nothing was committed; \`git restore .\` undoes what was begun" >&2' EXIT
npm version --no-git-tag-version "$version" >/dev/null
sed -i "s/^## Unreleased\$/## $version, $(date -u +%Y-%m-%d)/" CHANGELOG.md
scripts/setup.sh build
# One of each thing that this version writes, which all later ones open.
scripts/release-vectors.sh "$version"
npm run prebuilds
# A second time from nothing: what cannot be made again by others is not released. It takes an hour or more, so one that was made before, with
# the same result, counts.
cmp --quiet prebuilds/manifest.json build/prebuilds-check/out/manifest.json || npm run prebuilds -- --check
scripts/test.sh prebuilds
scripts/prebuilds/table.sh
# Refuses if something is missing or stale.
npm pack --dry-run --silent >/dev/null
# Between releases they are ignored.
git add --force prebuilds
git add test/vectors/releases
git commit --all --quiet --message "release: $version"
trap - EXIT
where=''
node scripts/publishable.mjs || where='
  before it, what npm publish asks for above, in a commit of its own: the package would not say where it comes from'
cat <<NEXT
release: $version is committed. When CI is through with it:$where
  git tag --sign v$version --message "sifcrypt $version" && git push origin main v$version
  npm publish --provenance --access public     # in the forge's workflow for tags: provenance names the workflow
  npm pack && npm run sbom                     # the tarball, and what it is made of, for the page of the release
and in CHANGELOG.md "## Unreleased" for what comes next.
NEXT
