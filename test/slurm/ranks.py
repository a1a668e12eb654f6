# A rank of a parallel program: adds numbers with all others through MPI, and reads a word of the next one's on its node out of its memory.
import ctypes
import os

mpi = ctypes.CDLL("libmpich.so.12", mode=ctypes.RTLD_GLOBAL)
libc = ctypes.CDLL("libc.so.6", use_errno=True)
WORLD, INT, LONG, SUM = 0x44000000, 0x4C000405, 0x4C000807, 0x58000003


class Piece(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]


mpi.MPI_Init(None, None)
rank, size, total = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
mpi.MPI_Comm_rank(WORLD, ctypes.byref(rank))
mpi.MPI_Comm_size(WORLD, ctypes.byref(size))
one = ctypes.c_int(rank.value + 1)
mpi.MPI_Allreduce(ctypes.byref(one), ctypes.byref(total), 1, INT, SUM, WORLD)

# Where Yama would keep others out (PR_SET_PTRACER, anybody).
libc.prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)
word = ctypes.create_string_buffer(f"word {rank.value}".encode(), 16)
mine = (ctypes.c_long * 3)(os.getpid(), ctypes.addressof(word), int(os.environ["SLURM_NODEID"]))
all = (ctypes.c_long * (3 * size.value))()
mpi.MPI_Allgather(mine, 3, LONG, all, 3, LONG, WORLD)
ranks = [(i, *all[3 * i : 3 * i + 3]) for i in range(size.value)]
near = [one for one in ranks if one[3] == mine[2]]
i, pid, place, _ = near[(near.index((rank.value, *mine)) + 1) % len(near)]
found = ctypes.create_string_buffer(16)
count = libc.process_vm_readv(pid, ctypes.byref(Piece(ctypes.addressof(found), 16)), 1, ctypes.byref(Piece(place, 16)), 1, 0)
why = found.value.decode() if count == 16 else os.strerror(ctypes.get_errno())
mpi.MPI_Barrier(WORLD)
print(f"{rank.value} of {size.value}: {total.value}, {i} says {why}", flush=True)
# Not finalised: MPICH's UCX takes ranks of two nodes that are one machine, whose numbers are the same in their containers, for one another
# when it takes their connections down.
