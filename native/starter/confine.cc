#include "starter/confine.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <utility>

#include "core/system_error.h"
#include "core/unique_fd.h"

namespace sifcrypt::starter {
namespace {

/// Covered by the new root while that is being made. Every system has it, and no place that is shown lies below it.
constexpr char kStage[] = "/sys";
constexpr const char* kLibraryFolders[] = {"/lib",       "/lib64",         "/usr/lib",
                                           "/usr/lib64", "/usr/local/lib", "/usr/local/lib64"};
constexpr char kLibraryCache[] = "/etc/ld.so.cache";

#if defined(__x86_64__)
constexpr uint32_t kArchitecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr uint32_t kArchitecture = AUDIT_ARCH_AARCH64;
#else
#error "no system call filter for this architecture"
#endif

/// CLONE_NEW*: without a namespace of its own a process gets no capability back.
constexpr uint32_t kNewNamespaces = 0x7E020080;

constexpr int kServerCalls[] = {
    SYS_read,
    SYS_write,
    SYS_readv,
    SYS_writev,
    SYS_pread64,
    SYS_pwrite64,
    SYS_preadv,
    SYS_pwritev,
    SYS_lseek,
    SYS_openat,
    SYS_close,
    SYS_fallocate,
    SYS_ftruncate,
    SYS_fstat,
    SYS_fstatfs,
    SYS_fcntl,
    SYS_dup,
    SYS_dup3,
    SYS_pipe2,
    SYS_ioctl,
    SYS_splice,
    SYS_vmsplice,
    SYS_tee,
    SYS_ppoll,
    SYS_pselect6,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_eventfd2,
    // Over descriptors that are there: no socket(2).
    SYS_sendmsg,
    SYS_recvmsg,
    SYS_sendto,
    SYS_recvfrom,
    SYS_socketpair,
    SYS_shutdown,
    // Memory.
    SYS_mmap,
    SYS_munmap,
    SYS_mprotect,
    SYS_mremap,
    SYS_madvise,
    SYS_brk,
    SYS_msync,
    SYS_mlock,
    SYS_munlock,
    // Threads, signals to itself, and children.
    SYS_futex,
    SYS_set_robust_list,
    SYS_get_robust_list,
    SYS_set_tid_address,
    SYS_gettid,
    SYS_getpid,
    SYS_getppid,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_rt_sigpending,
    SYS_rt_sigtimedwait,
    SYS_rt_sigsuspend,
    SYS_sigaltstack,
    SYS_sched_yield,
    SYS_sched_getaffinity,
    SYS_sched_getparam,
    SYS_sched_getscheduler,
    SYS_membarrier,
    SYS_exit,
    SYS_exit_group,
    SYS_wait4,
    SYS_waitid,
    SYS_restart_syscall,
    // Time, and what it is itself.
    SYS_clock_gettime,
    SYS_clock_getres,
    SYS_clock_nanosleep,
    SYS_nanosleep,
    SYS_gettimeofday,
    SYS_getrandom,
    SYS_uname,
    SYS_sysinfo,
    SYS_getuid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getegid,
    SYS_getresuid,
    SYS_getresgid,
    SYS_getgroups,
    SYS_getrlimit,
    SYS_getrusage,
    SYS_prctl,
    SYS_capget,
#ifdef SYS_rseq
    SYS_rseq,
#endif
#ifdef __x86_64__
    SYS_arch_prctl,
    SYS_poll,
    SYS_select,
    SYS_epoll_wait,
    SYS_dup2,
    SYS_pipe,
    SYS_time,
    SYS_getpgrp,
#endif
};

constexpr int kProgramCalls[] = {
    SYS_newfstatat,  SYS_statx,           SYS_faccessat,
    SYS_readlinkat,  SYS_getdents64,      SYS_statfs,
    SYS_getcwd,      SYS_chdir,           SYS_fchdir,
    SYS_umask,       SYS_flock,           SYS_fadvise64,
    SYS_readahead,   SYS_copy_file_range, SYS_sendfile,
    SYS_preadv2,     SYS_pwritev2,        SYS_fsync,
    SYS_fdatasync,   SYS_syncfs,          SYS_sync_file_range,
    SYS_truncate,    SYS_mkdirat,         SYS_unlinkat,
    SYS_renameat2,   SYS_linkat,          SYS_symlinkat,
    SYS_mknodat,     SYS_fchmod,          SYS_fchmodat,
    SYS_fchown,      SYS_fchownat,        SYS_utimensat,
    SYS_getxattr,    SYS_lgetxattr,       SYS_fgetxattr,
    SYS_setxattr,    SYS_lsetxattr,       SYS_fsetxattr,
    SYS_listxattr,   SYS_llistxattr,      SYS_flistxattr,
    SYS_removexattr, SYS_lremovexattr,    SYS_fremovexattr,
    SYS_execve,      SYS_setsid,          SYS_setpgid,
    SYS_setrlimit,
#ifdef SYS_renameat
    SYS_renameat,
#endif
#ifdef SYS_openat2
    SYS_openat2,
#endif
#ifdef SYS_faccessat2
    SYS_faccessat2,
#endif
#ifdef SYS_close_range
    SYS_close_range,
#endif
#ifdef __x86_64__
    SYS_open,        SYS_creat,           SYS_stat,
    SYS_lstat,       SYS_access,          SYS_readlink,
    SYS_getdents,    SYS_mkdir,           SYS_rmdir,
    SYS_unlink,      SYS_rename,          SYS_link,
    SYS_symlink,     SYS_mknod,           SYS_chmod,
    SYS_chown,       SYS_lchown,          SYS_utime,
    SYS_utimes,
#endif
};

class Filter {
 public:
  Filter() {
    Load(offsetof(seccomp_data, arch));
    UnlessEqual(kArchitecture, SECCOMP_RET_KILL_PROCESS);
    Load(offsetof(seccomp_data, nr));
  }

  void Allow(int call) { When(call, {Return(SECCOMP_RET_ALLOW)}); }
  void Refuse(int call, int error) { When(call, {Return(Error(error))}); }
  void AllowWithout(int call, int argument, uint32_t bits) {
    When(call, {LoadAt(ArgumentOf(argument)), BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, bits, 1, 0),
                Return(SECCOMP_RET_ALLOW), Return(Error(EPERM))});
  }
  void AllowOnly(int call, int argument, uint32_t value) {
    When(call, {LoadAt(ArgumentOf(argument)), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1),
                Return(SECCOMP_RET_ALLOW), Return(Error(EPERM))});
  }

  void Install() {
    program_.push_back(Return(Error(EPERM)));
    const sock_fprog program{static_cast<unsigned short>(program_.size()), program_.data()};
    CheckErrno(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), "prctl");
  }

 private:
  static uint32_t Error(int error) { return SECCOMP_RET_ERRNO | (static_cast<uint32_t>(error) & SECCOMP_RET_DATA); }
  static sock_filter Return(uint32_t action) { return BPF_STMT(BPF_RET | BPF_K, action); }
  static sock_filter LoadAt(size_t offset) { return BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<uint32_t>(offset)); }
  /// The lower half, on the machines that there are.
  static size_t ArgumentOf(int argument) {
    return offsetof(seccomp_data, args) + sizeof(uint64_t) * static_cast<size_t>(argument);
  }

  void Load(size_t offset) { program_.push_back(LoadAt(offset)); }
  void UnlessEqual(uint32_t value, uint32_t action) {
    program_.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 1, 0));
    program_.push_back(Return(action));
  }
  void When(int call, const std::vector<sock_filter>& then) {
    program_.push_back(
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(call), 0, static_cast<unsigned char>(then.size())));
    program_.insert(program_.end(), then.begin(), then.end());
  }

  std::vector<sock_filter> program_;
};

void InstallFilter(Calls calls) {
  Filter filter;
  for (const int call : kServerCalls) filter.Allow(call);
    // Its flags are in memory, where a filter cannot look; without it clone(2) is used.
#ifdef SYS_clone3
  filter.Refuse(SYS_clone3, ENOSYS);
#endif
  filter.AllowWithout(SYS_clone, 0, kNewNamespaces);
  const auto self = static_cast<uint32_t>(getpid());
  filter.AllowOnly(SYS_tgkill, 0, self);
  filter.AllowOnly(SYS_prlimit64, 0, 0);
  if (calls == Calls::kProgram)
    for (const int call : kProgramCalls) filter.Allow(call);
  filter.Install();
}

void MakePlace(const SeenPlace& place, const std::string& stage, const char* operation) {
  const std::string target = stage + place.target;
  if (place.source.empty()) {
    std::filesystem::create_directories(target);
    return;
  }
  struct stat info {};
  if (lstat(place.source.c_str(), &info) != 0) throw SystemError(errno, operation, place.source);
  std::filesystem::create_directories(std::filesystem::path(target).parent_path());
  if (S_ISLNK(info.st_mode)) {
    std::filesystem::copy_symlink(place.source, target);
    return;
  }
  if (S_ISDIR(info.st_mode))
    std::filesystem::create_directories(target);
  else
    UniqueFd(CheckErrno(open(target.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600), operation));
  if (mount(place.source.c_str(), target.c_str(), nullptr, MS_BIND | MS_REC, nullptr) != 0)
    throw SystemError(errno, operation, place.source + ": " + std::strerror(errno));
  if (!place.as_it_is) RestrictMount(target, MS_RDONLY, operation);
}

}  // namespace

void EnterOwnRoot(const std::vector<SeenPlace>& places, const char* operation) {
  CheckErrno(unshare(CLONE_NEWNS), operation);
  CheckErrno(mount(nullptr, "/", nullptr, MS_REC | MS_SLAVE, nullptr), operation);
  CheckErrno(mount("tmpfs", kStage, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m"), operation);
  for (const SeenPlace& place : places) MakePlace(place, kStage, operation);
  CheckErrno(chdir(kStage), operation);
  RestrictMount(".", MS_RDONLY | MS_NODEV, operation);
  // pivot_root(2): the old root is mounted over the new one, and taken away from there.
  CheckErrno(syscall(SYS_pivot_root, ".", "."), operation);
  CheckErrno(umount2(".", MNT_DETACH), operation);
  CheckErrno(chdir("/"), operation);
}

std::vector<SeenPlace> LibraryPlaces() {
  std::vector<SeenPlace> places;
  for (const char* folder : kLibraryFolders)
    if (access(folder, F_OK) == 0) places.push_back({folder, folder});
  if (access(kLibraryCache, F_OK) == 0) places.push_back({kLibraryCache, kLibraryCache});
  return places;
}

void GiveUpPrivileges(Calls calls, uint64_t kept) {
#ifdef __GLIBC__
  // glibc looks for this library when a thread is cancelled, as libfuse's are in the end, and aborts without it: when no file can be opened
  // any more it has to be there.
  if (calls == Calls::kServer) dlopen("libgcc_s.so.1", RTLD_NOW);
#endif
  CheckErrno(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl");
  // What it may not (EPERM), as an ordinary user, no_new_privs keeps it from using.
  for (int capability = 0; prctl(PR_CAPBSET_READ, capability) >= 0; ++capability) prctl(PR_CAPBSET_DROP, capability);
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3] = {};
  for (size_t half = 0; half < std::size(sets); ++half)
    sets[half].effective = sets[half].permitted = static_cast<uint32_t>(kept >> (32 * half));
  CheckErrno(syscall(SYS_capset, &header, sets), "capset");
  InstallFilter(calls);
}

void RestrictMount(const std::string& path, unsigned long flags, const char* operation) {
  struct statvfs info {};
  CheckErrno(statvfs(path.c_str(), &info), operation);
  constexpr std::pair<unsigned long, unsigned long> kKept[] = {
      {ST_RDONLY, MS_RDONLY},   {ST_NODEV, MS_NODEV},           {ST_NOEXEC, MS_NOEXEC},
      {ST_NOATIME, MS_NOATIME}, {ST_NODIRATIME, MS_NODIRATIME}, {ST_RELATIME, MS_RELATIME},
  };
  flags |= MS_REMOUNT | MS_BIND | MS_NOSUID;
  for (const auto& [has, keeps] : kKept)
    if ((info.f_flag & has) != 0) flags |= keeps;
  CheckErrno(mount(nullptr, path.c_str(), nullptr, flags, nullptr), operation);
}

}  // namespace sifcrypt::starter
