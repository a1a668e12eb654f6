// Definition files that cover the grammar, for a live Apptainer and for us. Bases and sources lie beside them.

/** One file, and what is given with it. */
export interface Golden {
  readonly text: string
  readonly args?: readonly string[]
  /** Both refuse it. */
  readonly refused?: true
  /** The peer refuses it, and it is built here: what looks like a section or a header in the middle of a script, or is one there. */
  readonly lenient?: true
}

const base = "Bootstrap: localimage\nFrom: base\n"

export const goldens: Readonly<Record<string, Golden>> = {
  "header alone": { text: base },
  "from scratch": {
    text: "Bootstrap: scratch\n\n%files\nbase/bin/busybox /bin/sh\n\n%runscript\necho from scratch\n",
  },
  "post, environment, labels and help": {
    text: `${base}
%post
  echo made > /etc/made
  mkdir -p /opt/a/b
%environment
export GREETING="hello  world"
%labels
Author Jane Doe
Version 1.0
Empty
%help
  Some help,
    indented.
%runscript
echo "$GREETING" "$@"
`,
  },
  "dynamic environment and labels": {
    text: `${base}
%labels
Static yes
Dynamic no
%post
echo 'export LATE=1' >> $APPTAINER_ENVIRONMENT
echo "Dynamic from post" >> $APPTAINER_LABELS
`,
  },
  "templates and arguments": {
    text: `${base}
%arguments
FILE=/etc/default
TEXT={{ NAME }}-{{ FILE }}
NAME=someone
%post
echo "{{ TEXT }}" > {{ FILE }}
# {{ UNDEFINED }} in a comment
echo {{NAME}} > /etc/name # {{ ALSO }}
%labels
Name {{ NAME }}
`,
    args: ["--build-arg", "NAME=given"],
  },
  "an argument without a value": { text: `${base}%post\necho {{ NOTHING }}\n`, refused: true },
  "an argument that nothing asks for": { text: base, args: ["--build-arg", "X=1"], refused: true },
  "an unknown section": { text: `${base}%pots\nx\n`, refused: true },
  "an unknown header": { text: `${base}Frmo: x\n`, refused: true },
  stages: {
    text: `Bootstrap: localimage
From: base
Stage: build

%post
mkdir -p /out/lib
echo built > /out/result
ln -s result /out/link
ln -s /out/result /out/absolute
echo library > /out/lib/one
chmod 755 /out/lib
mkdir -m 750 /out/lib/inner
chmod 4755 /out/result

Bootstrap: localimage
From: base
Stage: final

%files from build
/out/result /usr/bin/tool
/out/link
/out/absolute /opt/
/out/lib /opt/lib
/out/l* /matched/

%post
cat /usr/bin/tool > /etc/copied
`,
  },
  "files of this machine": {
    text: `${base}
%files
source/one.txt
source/one.txt /opt/renamed
source/*.txt /opt/texts/
"source/with space.txt" /opt/spaced.txt
source/folder /opt/folder
source/folder /opt/
source/link.txt /opt/followed.txt
source/script.sh /usr/bin/
`,
  },
  "files over what exists": {
    text: `${base}
%files
source/one.txt /data/hello
source/folder /data
source/folder/inner.txt /etc/passwd-link
%post
cat /data/hello
`,
  },
  "a source that is missing": { text: `${base}%files\nsource/nothing.txt /opt/\n`, refused: true },
  apps: {
    text: `${base}
%appinstall second
echo second > installed
%apprun first
exec echo "first app" "$@"
%appenv first
FIRST=1
export FIRST
%applabels first
Version 2
%apphelp first
How to use first
%apptest first
echo fine
%appfiles first
source/one.txt share.txt
%appinstall first
echo first > bin/installed
echo $SCIF_APPNAME > name
%post
echo before the apps > /etc/order
`,
  },
  "arguments of scripts": {
    text: `${base}
%post -u
set -- a b
echo "$1 $2" > /etc/words
%runscript -e
echo run
%startscript
echo start
%test
echo test
`,
  },
  "another shell for post": { text: `${base}%post -c /bin/sh -e\necho "$-" > /etc/flags\n` },
  "a failing post": { text: `${base}%post\nfalse\necho not reached\n`, refused: true },
  "a failing test": { text: `${base}%test\nexit 3\n`, refused: true },
  "scripts with a first line of their own": {
    text: `${base}
%runscript
#!/bin/busybox sh
echo own
%test
#!/bin/sh -e
true
`,
  },
  setup: {
    text: `${base}
%setup
echo from setup > \${APPTAINER_ROOTFS}/etc/setup
mkdir \${APPTAINER_ROOTFS}/opt-setup
%post
cat /etc/setup > /etc/seen
`,
  },
  "repeated sections": {
    text: `${base}
%post
A=1
%environment
export ONE=1
%labels
A 1
%post
echo $A > /etc/joined
%environment
export TWO=2
%labels
A 2
B 3
`,
  },
  "modes, links and special files": {
    text: `${base}
%post
mkdir /m
touch /m/file
mkdir /m/folder
chmod 2775 /m/folder
chmod 0400 /m/file
ln /m/file /m/second
ln -s nowhere /m/dangling
mkfifo /m/fifo
chown 12:34 /m/folder
dd if=/dev/zero of=/m/sparse bs=1 count=1 seek=100000
`,
  },
  "what is temporary": { text: `${base}%post\necho x > /tmp/gone-SUFFIX\necho x > /var/tmp/gone-SUFFIX\n` },
  "comments and continued headers": {
    text: `bootstrap: localimage # a comment
# another
  FROM: ba\\
  se

%Post
  # nothing
  echo \\
    joined > /etc/line
`,
  },
  "from an image, whose definition becomes history": {
    text: `Bootstrap: localimage
From: earlier.sif

%environment
export LATER=1
%labels
Kept changed
New yes
%help
Another help
`,
  },
  tabs: {
    text: "Bootstrap:\tlocalimage\nFrom:\tbase\n\n%post\n\techo x\t> /etc/tabs\n%labels\n\tName value with  blanks\n%files\n\tsource/one.txt\t/opt/one\n",
  },
  "carriage returns": {
    text: "Bootstrap: localimage\r\nFrom: base\r\n\r\n%labels\r\nName value\r\n%help\r\nhelp\r\n",
  },
  "a byte order mark": { lenient: true, text: `\ufeff${base}%labels\nName value\n` },
  "headers in capitals, and blanks around them": {
    text: "  BOOTSTRAP:   localimage  \n\n# a comment\nFROM:base\n%labels\nName value\n",
  },
  "indented sections": {
    lenient: true,
    text: `${base}  %post\n    echo x > /etc/indented\n\t%labels\n  Name value\n`,
  },
  "a section without a line end": { text: `${base}%post\necho x > /etc/last` },
  "empty sections, one right behind the other": {
    text: `${base}%post\n%environment\n%labels\n%help\n%files\n%test\n`,
  },
  "setup behind post": {
    text: `${base}%post\ncat /etc/early > /etc/late\n%setup\necho early > \${APPTAINER_ROOTFS}/etc/early\n`,
  },
  "comments around everything": {
    text: `# first\n${base}# second\n#%post\n#false\n%post # third\n# fourth\necho x > /etc/x # fifth\n%labels\n# sixth\nName value # seventh\n`,
  },
  "percent signs that begin no section": {
    refused: true,
    text: `${base}%post\nprintf '%s\\n' x \\\n  > /etc/percent\ncat <<END >> /etc/percent\n 100 %\n  %s\nEND\n`,
  },
  "here-documents with what looks like a header": {
    refused: true,
    text: `${base}%post\ncat <<'END' > /etc/here\nBootstrap: docker\nFrom: nothing\nEND\n`,
  },
  "labels with colons, equals signs and quotes": {
    text: `${base}%labels\nA: b\nC = d\nE "f g"\nH 'i\nj.k/l m:n=o\n`,
  },
  "sources with quotes, blanks, globs and links": {
    text: `${base}%files\n  "source/with space.txt" /opt/a\n  source/*.txt /opt/all/\n  source/folder /opt/b\n  source/link.txt\n`,
  },
  "apps in pieces, mixed with the rest": {
    text: `${base}%apprun one\necho one\n%post\necho x > /etc/x\n%appenv two-2.x\nexport TWO=2\n%applabels one\nName value\n%appinstall one\necho bin > file\n%apphelp one\nhelp\n%apprun two-2.x\necho two\n%labels\nName value\n`,
  },
  "environment of many lines and kinds": {
    text: `${base}%environment\n  A=1\n  export A B="x y"\n  if [ -n "$A" ]; then\n    export C=\\\n3\n  fi\n  export PATH=/opt/bin:$PATH\n`,
  },
  "words that are no ASCII": {
    text: `${base}%labels\nNäme wért\n%help\nhilfe ☃\n%post\necho ☃ > /etc/snow\n`,
  },
}

/** What `earlier.sif` is built from. */
export const earlier: string = `${base}
%environment
export EARLIER=1
%labels
Kept original
%help
The first help
%runscript
echo earlier
`
