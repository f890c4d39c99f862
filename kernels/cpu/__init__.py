"""The C++ kernels for the CPU: `csrc/` is their source, `build.py` compiles and loads it, `ops.py` calls it."""
