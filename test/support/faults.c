// Starts a program of which one system call fails: `faults REPORT FROM WHO CALL FAIL ERRNO -- PROGRAM…`. The kernel asks a process of ours before each
// call that matters, of the program and of all that comes of it, whoever they run as and however they are linked (seccomp's user
// notifications); that counts them over all processes and threads, and answers ERRNO for number FAIL of those that processes of WHO make as CALL. Counted
// is what sifcrypt's own processes do, from the first time that one of them opens a file whose name starts with FROM: before that Node starts.
// REPORT gets a line for each, `NUMBER PROGRAM KIND CALL OBJECT`, with `data` of what is written where ERRNO is `data`.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum object { NONE, DESCRIPTOR, NAME, NAME_AT, TWO_NAMES, TWO_NAMES_AT };

static const struct call {
  int number;
  const char *name, *kind;
  enum object object;
} calls[] = {
    {SYS_write, "write", "write", DESCRIPTOR},
    {SYS_pwrite64, "pwrite64", "write", DESCRIPTOR},
    {SYS_writev, "writev", "write", DESCRIPTOR},
    {SYS_pwritev, "pwritev", "write", DESCRIPTOR},
    {SYS_copy_file_range, "copy_file_range", "write", NONE},
    {SYS_sendfile, "sendfile", "write", DESCRIPTOR},
    {SYS_ftruncate, "ftruncate", "write", DESCRIPTOR},
    {SYS_fallocate, "fallocate", "write", DESCRIPTOR},
    {SYS_fsync, "fsync", "fsync", DESCRIPTOR},
    {SYS_fdatasync, "fdatasync", "fsync", DESCRIPTOR},
    {SYS_rename, "rename", "rename", TWO_NAMES},
    {SYS_renameat, "renameat", "rename", TWO_NAMES_AT},
    {SYS_renameat2, "renameat2", "rename", TWO_NAMES_AT},
    {SYS_link, "link", "rename", TWO_NAMES},
    {SYS_linkat, "linkat", "rename", TWO_NAMES_AT},
    {SYS_mkdir, "mkdir", "rename", NAME},
    {SYS_mkdirat, "mkdirat", "rename", NAME_AT},
    {SYS_unlink, "unlink", "unlink", NAME},
    {SYS_open, "open", "open", NAME},
    {SYS_openat, "openat", "open", NAME_AT},
    {SYS_openat2, "openat2", "open", NAME_AT},
    {SYS_memfd_create, "memfd_create", "open", NONE},
    {SYS_pipe2, "pipe2", "open", NONE},
    {SYS_mmap, "mmap", "mmap", NONE},
    {SYS_clone, "clone", "fork", NONE},
    {SYS_clone3, "clone3", "fork", NONE},
    {SYS_fork, "fork", "fork", NONE},
    {SYS_vfork, "vfork", "fork", NONE},
    {SYS_unshare, "unshare", "mount", NONE},
    {SYS_mount, "mount", "mount", NONE},
    {SYS_fsopen, "fsopen", "mount", NONE},
    {SYS_fsmount, "fsmount", "mount", NONE},
    {SYS_open_tree, "open_tree", "mount", NAME_AT},
    {SYS_move_mount, "move_mount", "mount", NONE},
    {SYS_pivot_root, "pivot_root", "mount", NONE},
    {SYS_ioctl, "ioctl", "ioctl", DESCRIPTOR},
    {SYS_read, "read", "read", DESCRIPTOR},
    {SYS_readv, "readv", "read", DESCRIPTOR},
    {SYS_pread64, "pread64", "read", DESCRIPTOR},
    {SYS_recvfrom, "recvfrom", "read", DESCRIPTOR},
    {SYS_recvmsg, "recvmsg", "read", DESCRIPTOR},
    {SYS_recvmmsg, "recvmmsg", "read", DESCRIPTOR},
    {SYS_sendto, "sendto", "send", DESCRIPTOR},
    {SYS_sendmsg, "sendmsg", "send", DESCRIPTOR},
    {SYS_sendmmsg, "sendmmsg", "send", DESCRIPTOR},
    {SYS_socket, "socket", "open", NONE},
    {SYS_socketpair, "socketpair", "open", NONE},
    {SYS_accept4, "accept4", "open", DESCRIPTOR},
    {SYS_connect, "connect", "connect", DESCRIPTOR},
};

static void fail(const char *what) {
  fprintf(stderr, "faults: %s: %s\n", what, strerror(errno));
  exit(99);
}

static bool begins(const char *text, const char *with) { return strncmp(text, with, strlen(with)) == 0; }

/// Where a link of /proc leads; empty if it cannot be seen.
static void link_of(char *into, size_t size, const char *format, unsigned process, int fd) {
  char name[64];
  snprintf(name, sizeof name, format, process, fd);
  const ssize_t length = readlink(name, into, size - 1);
  into[length < 0 ? 0 : length] = 0;
}

static bool copy_of(unsigned process, uint64_t address, void *into, size_t size) {
  struct iovec local = {into, size}, remote = {(void *)(uintptr_t)address, size};
  return process_vm_readv((pid_t)process, &local, 1, &remote, 1, 0) == (ssize_t)size;
}

/// A name among the arguments, absolute if that can be known.
static void name_of(char *into, size_t size, unsigned process, int folder, uint64_t address) {
  char name[4096] = "";
  size_t length = 0;
  while (length + 1 < sizeof name && copy_of(process, address + length, name + length, 1) && name[length] != 0) length++;
  name[length] = 0;
  int fd;
  if (sscanf(name, "/proc/self/fd/%d", &fd) == 1) {
    link_of(into, size, "/proc/%u/fd/%d", process, fd);
    return;
  }
  into[0] = 0;
  if (name[0] != '/') {
    link_of(into, size, folder == AT_FDCWD ? "/proc/%u/cwd" : "/proc/%u/fd/%d", process, folder);
    strncat(into, "/", size - strlen(into) - 1);
  }
  strncat(into, name, size - strlen(into) - 1);
}

/// Has the process another descriptor of this pipe: does it write to itself?
static bool writes_to_itself(unsigned process, int fd, const char *pipe) {
  char other[512];
  for (int i = 0; i < 64; i++) {
    if (i == fd) continue;
    link_of(other, sizeof other, "/proc/%u/fd/%d", process, i);
    if (strcmp(other, pipe) == 0) return true;
  }
  return false;
}

/// Is it the first thread of its process?
static bool leads(unsigned thread) {
  char name[64], line[128];
  unsigned process = 0;
  snprintf(name, sizeof name, "/proc/%u/status", thread);
  FILE *status = fopen(name, "r");
  if (status == NULL) return true;
  while (fgets(line, sizeof line, status) != NULL) sscanf(line, "Tgid: %u", &process);
  fclose(status);
  return process == thread;
}

/// Is it the system's loader that asks, wherever in memory that lies?
static bool is_loader(const struct seccomp_notif *asked) {
  char name[64], line[512];
  unsigned long long start, end;
  bool found = false;
  snprintf(name, sizeof name, "/proc/%u/maps", asked->pid);
  FILE *maps = fopen(name, "r");
  while (maps != NULL && !found && fgets(line, sizeof line, maps) != NULL)
    found = sscanf(line, "%llx-%llx", &start, &end) == 2 && asked->data.instruction_pointer >= start &&
            asked->data.instruction_pointer < end && strstr(line, "/ld-linux") != NULL;
  if (maps != NULL) fclose(maps);
  return found;
}

/// What is left to Node and libuv, which end the process where these fail (eventfd, memory, threads of the event loop's), or that nobody hears of.
static bool is_ours(const struct seccomp_notif *asked, const struct call *call, const char *program, const char *object) {
  const __u64 *args = asked->data.args;
  const bool node = strcmp(program, "node") == 0;
  if (strcmp(call->kind, "write") == 0 || strcmp(call->kind, "read") == 0) {
    // Of random numbers libcryptsetup reads thousands of pieces. They do not fail, nor does the kernel's side of FUSE.
    if (begins(object, "anon_inode:") || begins(object, "/dev/urandom") || begins(object, "/dev/fuse")) return false;
    if (strcmp(call->kind, "read") == 0 && begins(object, "pipe:")) return false;
    if (begins(object, "pipe:") && writes_to_itself(asked->pid, (int)args[0], object)) return false;
  }
  // The system's loader, which says so itself, or crashes, before a program begins.
  if (strstr(object, ".so.") != NULL || strstr(object, "/sifcrypt.node") != NULL) return false;
  if (call->number == SYS_mmap && is_loader(asked)) return false;
  if (!node) return true;
  // Of a module that it cannot read Node says that there is none, or ends the process.
  if (strstr(object, "/node_modules/") != NULL || strstr(object, "/dist/") != NULL) return false;
  // Where there is no memory, V8 ends the process.
  if (call->number == SYS_mmap) return (int)args[4] >= 0;
  if (strcmp(call->kind, "fork") == 0) {
    uint64_t flags = args[0];
    if (call->number == SYS_clone3 && !copy_of(asked->pid, args[0], &flags, sizeof flags)) return false;
    // Threads of Node's own are started by its first one; ours by the pool's.
    return (flags & CLONE_THREAD) == 0 || !leads(asked->pid);
  }
  return true;
}

static FILE *report;
static const char *from, *who, *what;
static unsigned long long wanted;
static int error;
static bool with_data;

/// What is written, where and how much: for whoever replays it.
static void report_data(const struct seccomp_notif *asked, const struct call *call) {
  const __u64 *args = asked->data.args;
  char name[64], line[128];
  unsigned long long position = 0;
  unsigned flags = 0;
  snprintf(name, sizeof name, "/proc/%u/fdinfo/%d", asked->pid, (int)args[0]);
  FILE *info = fopen(name, "r");
  if (info != NULL) {
    while (fgets(line, sizeof line, info) != NULL) {
      sscanf(line, "pos: %llu", &position);
      sscanf(line, "flags: %o", &flags);
    }
    fclose(info);
  }
  if (call->number == SYS_pwrite64) position = args[3];
  if (call->number == SYS_pwritev) position = args[3];
  struct iovec parts[64] = {{(void *)(uintptr_t)args[1], args[2]}};
  size_t count = 1;
  if (call->number == SYS_writev || call->number == SYS_pwritev) {
    count = args[2] < 64 ? args[2] : 64;
    if (!copy_of(asked->pid, args[1], parts, count * sizeof parts[0])) fail("what is written");
  }
  fprintf(report, " %llu ", position);
  for (size_t i = 0; i < count; i++) {
    unsigned char *bytes = malloc(parts[i].iov_len + 1);
    if (bytes == NULL || (parts[i].iov_len > 0 &&
                          !copy_of(asked->pid, (uintptr_t)parts[i].iov_base, bytes, parts[i].iov_len)))
      fail("what is written");
    for (size_t j = 0; j < parts[i].iov_len; j++) fprintf(report, "%02x", bytes[j]);
    free(bytes);
  }
}

/// The errno to answer; 0: let it be.
static int judge(const struct seccomp_notif *asked) {
  static unsigned long long count, alike;
  static bool begun;
  char object[8500] = "-", second[4200], program[512];
  const struct call *call = NULL;
  for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++)
    if (calls[i].number == asked->data.nr) call = &calls[i];
  if (call == NULL) return 0;
  link_of(program, sizeof program, "/proc/%u/exe", asked->pid, 0);
  const char *base = strrchr(program, '/');
  base = base == NULL ? program : base + 1;
  if (strcmp(base, "node") != 0 && !begins(base, "sifcrypt-")) return 0;
  const __u64 *args = asked->data.args;
  switch (call->object) {
    case DESCRIPTOR:
      link_of(object, sizeof object, "/proc/%u/fd/%d", asked->pid, (int)args[0]);
      break;
    case NAME:
      name_of(object, sizeof object, asked->pid, AT_FDCWD, args[0]);
      break;
    case NAME_AT:
      name_of(object, sizeof object, asked->pid, (int)args[0], args[1]);
      break;
    case TWO_NAMES:
    case TWO_NAMES_AT:
      name_of(object, 4200, asked->pid, call->object == TWO_NAMES ? AT_FDCWD : (int)args[0],
              args[call->object == TWO_NAMES ? 0 : 1]);
      name_of(second, sizeof second, asked->pid, call->object == TWO_NAMES ? AT_FDCWD : (int)args[2],
              args[call->object == TWO_NAMES ? 1 : 3]);
      strcat(strcat(object, " -> "), second);
      break;
    case NONE:
      if (call->number == SYS_mmap && (int)args[4] >= 0)
        link_of(object, sizeof object, "/proc/%u/fd/%d", asked->pid, (int)args[4]);
      break;
  }
  if (!begun) begun = strcmp(call->kind, "open") == 0 && begins(object, from);
  if (!begun || !is_ours(asked, call, base, object)) return 0;
  count++;
  const bool fails = strcmp(base, who) == 0 && strcmp(call->name, what) == 0 && ++alike == wanted;
  for (char *at = object; *at != 0; at++)
    if (*at == '\n') *at = '?';
  fprintf(report, "%llu %s %s %s %s", count, base, call->kind, call->name, object);
  if (with_data && strcmp(call->kind, "write") == 0 && call->object == DESCRIPTOR && object[0] == '/') {
    if (call->number == SYS_ftruncate)
      fprintf(report, " %llu", (unsigned long long)args[1]);
    else if (call->number == SYS_fallocate)
      fprintf(report, " %llu %llu %llu", (unsigned long long)args[1], (unsigned long long)args[2],
              (unsigned long long)args[3]);
    else
      report_data(asked, call);
  }
  fprintf(report, "%s\n", fails ? " FAILS" : "");
  fflush(report);
  return fails ? error : 0;
}

static void supervise(int listener) {
  struct seccomp_notif asked;
  struct seccomp_notif_resp answer;
  for (;;) {
    struct pollfd ready = {listener, POLLIN, 0};
    if (poll(&ready, 1, -1) < 0 && errno != EINTR) fail("poll");
    // Nobody is left who could ask.
    if ((ready.revents & POLLIN) == 0 && (ready.revents & POLLHUP) != 0) exit(0);
    if ((ready.revents & POLLIN) == 0) continue;
    memset(&asked, 0, sizeof asked);
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &asked) != 0) continue;  // It has been killed meanwhile.
    memset(&answer, 0, sizeof answer);
    answer.id = asked.id;
    answer.error = -judge(&asked);
    if (answer.error == 0) answer.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer) != 0 && errno != ENOENT) fail("answer");
  }
}

static int install(void) {
  enum { COUNT = sizeof calls / sizeof calls[0] };
  struct sock_filter filter[COUNT + 5];
  size_t length = 0;
  filter[length++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
  filter[length++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, COUNT + 1);
  filter[length++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
  for (size_t i = 0; i < COUNT; i++)
    filter[length++] =
        (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)calls[i].number, (uint8_t)(COUNT - i), 0);
  filter[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  filter[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
  const struct sock_fprog program = {(unsigned short)length, filter};
  // Root's right, without no_new_privs: the system's setuid programs have to work.
  const long listener = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
                                SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, &program);
  if (listener < 0) fail("seccomp");
  return (int)listener;
}

int main(int argc, char **argv) {
  if (argc < 9 || strcmp(argv[7], "--") != 0) {
    fprintf(stderr, "usage: faults REPORT FROM WHO CALL FAIL ERRNO -- PROGRAM...\n");
    return 99;
  }
  from = argv[2];
  who = argv[3];
  what = argv[4];
  wanted = strtoull(argv[5], NULL, 10);
  with_data = strcmp(argv[6], "data") == 0;
  error = with_data ? 0 : atoi(argv[6]);
  int line[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, line) != 0) fail("socketpair");
  report = fopen(argv[1], "we");
  if (report == NULL) fail(argv[1]);
  // The number of the descriptor, for the supervisor.
  volatile int *const listener = mmap(NULL, sizeof *listener, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (listener == MAP_FAILED) fail("mmap");
  const pid_t supervisor = fork();
  if (supervisor < 0) fail("fork");
  if (supervisor == 0) {
    // Whoever reads what the program writes is not to wait for this one; its end is seen by the end of the report.
    const int null = open("/dev/null", O_RDWR);
    for (int fd = 0; fd < 3; fd++) dup2(null, fd);
    setsid();
    close(line[0]);
    char end;
    if (read(line[1], &end, 1) != 0 || *listener <= 0) return 99;
    // The same number in the other process, which is our parent.
    const int other = (int)syscall(SYS_pidfd_open, getppid(), 0);
    const int fd = (int)syscall(SYS_pidfd_getfd, other, *listener, 0);
    if (fd < 0) return 99;
    close(other);
    if (send(line[1], "", 1, 0) != 1) return 99;
    close(line[1]);
    supervise(fd);
  }
  *listener = install();
  // By nothing that is asked about, as nobody answers yet.
  if (shutdown(line[0], SHUT_WR) != 0) return 99;
  struct pollfd answered = {line[0], POLLIN, 0};
  if (poll(&answered, 1, 10000) != 1 || (answered.revents & POLLIN) == 0) return 99;
  close(*listener);
  execvp(argv[8], argv + 8);
  return 99;
}
