"""C functions that numba has compiled, as one object file that LLVM alone can load: numba's own way back needs all of numba."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from llvmlite import binding

_LIBRARY = {"memset", "memcpy", "memmove"}
_PREFIX = "cfunc."
_engines: list[Any] = []  # they hold the memory that the functions lie in


def link(functions: Mapping[str, Any], *, calls: Iterable[str]) -> bytes:
    """``functions``: by the names that they get, from ``numba.cfunc`` with the signature ``void (int64_t *)``.

    numba wraps such a function in one that reports an error to Python. Its place is taken by one that ends the process; where nothing can fail,
    nothing is left of either. Raises ValueError for code that calls anything but ``calls``, as what takes memory does.
    """
    whole = binding.parse_assembly("")
    for name, function in functions.items():
        whole.link_in(binding.parse_assembly(function.inspect_llvm()))
        whole.link_in(binding.parse_assembly(_wrapper(name, function.native_name.removeprefix(_PREFIX))))
    for part in [*whole.functions, *whole.global_variables]:
        if not part.is_declaration and part.name not in functions:
            part.linkage = binding.Linkage.internal
    machine = _machine()
    passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=3))
    manager = passes.getModulePassManager()
    manager.run(whole, passes)
    called = {part.name for part in whole.functions if part.is_declaration and not part.name.startswith("llvm.")}
    if foreign := called - {*calls} - _LIBRARY:
        raise ValueError(f"{', '.join(functions)}: calls {', '.join(sorted(foreign))}")
    return bytes(machine.emit_object(whole))


def load(code: bytes, names: Iterable[str], *, calls: Mapping[str, int]) -> dict[str, int]:
    """Addresses of the functions of an object file, valid as long as the process lives."""
    for name, address in calls.items():
        binding.add_symbol(name, address)
    machine, empty = _machine(), binding.parse_assembly("")
    empty.triple, empty.data_layout = machine.triple, str(machine.target_data)  # they say how names are written
    engine = binding.create_mcjit_compiler(empty, machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return {name: engine.get_function_address(name) for name in names}


def _wrapper(name: str, native: str) -> str:
    """numba's own calling convention: where the result goes, where an error goes, the arguments; not zero where there is an error."""
    return f"""
        declare i32 @"{native}"(ptr, ptr, ptr)
        declare void @llvm.trap()
        define void @"{name}"(ptr %given) {{
            %result = alloca ptr
            %error = alloca ptr
            %status = call i32 @"{native}"(ptr %result, ptr %error, ptr %given)
            %failed = icmp ne i32 %status, 0
            br i1 %failed, label %end, label %return
        end:
            call void @llvm.trap()
            unreachable
        return:
            ret void
        }}
    """


def _machine() -> Any:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_default_triple()
    name = os.environ.get("NUMBA_CPU_NAME") or binding.get_host_cpu_name()
    features = os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        features = "" if name == "generic" else binding.get_host_cpu_features().flatten()
    reloc = "static" if target.name.startswith("x86") else "default"
    return target.create_target_machine(cpu=name, features=features, opt=3, reloc=reloc, codemodel="jitdefault", jit=True)
