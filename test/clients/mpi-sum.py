# A parallel program without a compiler: each process adds its rank, and all of them print the sum. argv[1]: the library.
import ctypes
import sys

name = sys.argv[1]
lib = ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)


def constant(mpich, openmpi):
    """MPICH's constants are numbers, Open MPI's the addresses of objects."""
    if "mpich" in name:
        return ctypes.c_int(mpich)
    return ctypes.c_void_p(ctypes.addressof(ctypes.c_char.in_dll(lib, openmpi)))


world = constant(0x44000000, "ompi_mpi_comm_world")
integer = constant(0x4C000405, "ompi_mpi_int")
total = constant(0x58000003, "ompi_mpi_op_sum")
lib.MPI_Init(None, None)
rank, size, sum_of_all = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
lib.MPI_Comm_rank(world, ctypes.byref(rank))
lib.MPI_Comm_size(world, ctypes.byref(size))
one = ctypes.c_int(rank.value + 1)
lib.MPI_Allreduce(ctypes.byref(one), ctypes.byref(sum_of_all), 1, integer, total, world)
print(f"{rank.value} of {size.value}: {sum_of_all.value}", flush=True)
lib.MPI_Finalize()
