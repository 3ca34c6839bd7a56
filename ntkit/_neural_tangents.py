"""The one door to neural-tangents: make release 0.6.5, the last one, import and work on today's JAX.

Importing this module changes what neural-tangents sees when it asks for ``jax`` or ``scipy``, and nothing else: a
finder on ``sys.meta_path`` loads the files of neural-tangents with an ``__import__`` of their own, which answers with
*views*. A view is a module that passes every attribute through to the real one, except for the names that left JAX
or SciPy or changed their meaning. The real modules stay as they are, so nothing else in the process notices.

Names do for most of the library. Structured derivatives read JAX's internals more deeply, and there a few functions
of ``neural_tangents._src.empirical`` are replaced after it has run, by ones written on JAX's public API.

neural-tangents takes a while to import, so this module does not: write ``from ntkit import _neural_tangents as nt``
and use ``nt.stax``, ``nt.predict`` and so on; the first attribute imports it. Only then does it matter whether it is
installed, and whether the repair fits the JAX that is. Its ``experimental`` subpackage, which needs TensorFlow, is
imported by whoever first asks for it.
"""

import builtins
import contextlib
import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import math
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

RELEASE = "0.6.5"
# What ntkit needs, as pyproject.toml states it, and the newest that the repair has been tried with. CI runs the tests
# with the oldest and with the newest there is.
OLDEST_JAX = (0, 6)
NEWEST_TRIED_JAX = (0, 12)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _check_jax_version(version: str) -> None:
    if _numbers(version) < OLDEST_JAX:
        oldest = _dotted(OLDEST_JAX)
        raise ImportError(
            f"ntkit works with jax>={oldest}, and this is jax {version}. "
            f"Install one that works: pip install 'jax>={oldest}'"
        )


def is_installed() -> bool:
    """Whether neural-tangents is there, without importing it."""
    try:
        return importlib.util.find_spec("neural_tangents") is not None
    except ModuleNotFoundError:  # a finder may say so instead of finding nothing
        return False


def load() -> ModuleType:
    """Import neural-tangents, or raise an `ImportError` that says what is missing."""
    try:
        return importlib.import_module("neural_tangents")
    except ModuleNotFoundError as error:
        if error.name != "neural_tangents":
            raise
        raise ModuleNotFoundError(
            f"neural-tangents is not installed, and this needs it: pip install 'neural-tangents=={RELEASE}'",
            name=error.name,
        ) from None


def _warn_of_an_untried_jax() -> None:
    if _numbers(jax.__version__) > NEWEST_TRIED_JAX:
        warnings.warn(
            f"the repair of neural-tangents {RELEASE} has been tried up to jax {_dotted(NEWEST_TRIED_JAX)}, and this "
            f"is jax {jax.__version__}: compare what it computes with an older one",
            stacklevel=2,
        )


def _unimportable(error: Exception) -> ImportError:
    """Give what to raise where a part of neural-tangents does not import."""
    what = f"neural-tangents {RELEASE} cannot be imported ({type(error).__name__}: {error}). "
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if missing and missing not in ("jax", "jaxlib"):
        return ImportError(f"{what}It needs another package: pip install {missing}", name=missing)
    oldest, newest = _dotted(OLDEST_JAX), _dotted(NEWEST_TRIED_JAX)
    return ImportError(
        f"{what}It is repaired for jax {oldest} to {newest}, and this is jax {jax.__version__}. All of ntkit works "
        "without it, but for `.stax()` and the engine 'neural_tangents'",
        name="neural_tangents",
    )


# What neural-tangents sees.


class _View(ModuleType):
    """A module that stands in for ``real`` with some names replaced or added."""

    def __init__(self, name: str, real: ModuleType | None, names: Mapping[str, Any]) -> None:
        super().__init__(name)
        self.__dict__.update(names)
        self.__dict__["_real"] = real

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self._real, name)
        except AttributeError as error:
            wanted = f"which neural-tangents {RELEASE} asks for"
            raise AttributeError(f"{self.__name__} has no {name!r} in jax {jax.__version__}, {wanted}") from error


@functools.cache
def _views() -> dict[str, _View]:
    """Build every view, by the name of the module it stands in for."""
    import scipy
    import scipy.linalg
    from jax.extend import core as extend
    from jax.interpreters import ad

    views: dict[str, _View] = {}

    def view(name: str, real: ModuleType | None, **names: Any) -> _View:
        views[name] = _View(name, real, names)
        return views[name]

    core = view(
        "jax.core",
        jax.core,
        **{name: getattr(extend, name) for name in ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var")},
        DShapedArray=type("DShapedArray", (), {}),  # dynamic shapes left JAX: nothing is an instance
    )
    ad_view = view(
        "jax.interpreters.ad",
        ad,
        # Today's zeros are symbolic; the rules that neural-tangents registers for the primitive are never used.
        zeros_like_p=extend.Primitive("zeros_like"),
        # Names for profilers only.
        source_info_util=SimpleNamespace(transform_name_stack=lambda _: contextlib.nullcontext()),
        # A check of its own bookkeeping against `core.lattice_join`, which is gone.
        config=SimpleNamespace(jax_enable_checks=False),
    )
    view(
        "jax",
        jax,
        core=core,
        numpy=view("jax.numpy", jnp, size=_size),
        interpreters=view("jax.interpreters", importlib.import_module("jax.interpreters"), ad=ad_view),
        tree_map=jax.tree_util.tree_map,
        util=view("jax.util", None, safe_map=_safe_map, safe_zip=_safe_zip),
    )
    view("scipy", scipy, linalg=view("scipy.linalg", scipy.linalg, eigvalsh=_eigvalsh))
    return views


def _safe_map(function: Callable[..., Any], *sequences: Any) -> list[Any]:
    return [function(*items) for items in zip(*map(list, sequences), strict=True)]


def _safe_zip(*sequences: Any) -> list[Any]:
    return list(zip(*map(list, sequences), strict=True))


def _size(array: Any, axis: int | None = None) -> int:
    # JAX is about to stop taking the size of a shape without an array.
    return math.prod(array.shape) if axis is None and hasattr(array, "shape") else jnp.size(array, axis)


def _eigvalsh(matrix: Any, *, eigvals: tuple[int, int] | None = None, **options: Any) -> Any:
    import scipy.linalg

    return scipy.linalg.eigvalsh(matrix, subset_by_index=eigvals, **options)


def _import(
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> Any:
    """Import as ``builtins.__import__`` does, and answer with the view of a module that has one."""
    if level == 1 and fromlist == ("experimental",) and globals and globals["__name__"] == "neural_tangents":
        return SimpleNamespace(experimental=None)  # `_import_experimental_later` takes it from here
    if level or name.partition(".")[0] not in ("jax", "scipy"):
        return builtins.__import__(name, globals, locals, fromlist or (), level)
    views = _views()
    if name == "jax.util":
        return views["jax.util" if fromlist else "jax"]
    module = builtins.__import__(name, globals, locals, fromlist or (), 0)
    return views.get(module.__name__, module)


# How neural-tangents is loaded.


class _Loader(importlib.machinery.SourceFileLoader):
    """Run a file of neural-tangents with the ``__import__`` above, then repair what names alone don't."""

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _import}
        if module.__name__ != "neural_tangents":
            self._run(module)
            return
        # The package imports all of its parts, and is imported before any of them.
        _FINDER.go_first()
        try:
            self._run(module)
        except Exception as error:
            raise _unimportable(error) from error
        _warn_of_an_untried_jax()

    def _run(self, module: ModuleType) -> None:
        super().exec_module(module)
        repair = _REPAIRS.get(module.__name__)
        if repair is not None:
            repair(module)


class _Finder(importlib.abc.MetaPathFinder):
    """Find neural-tangents where the other finders find it, and load it with ``_Loader``."""

    package: ClassVar[str] = "neural_tangents"
    loader: ClassVar[type[_Loader]] = _Loader

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] != self.package:
            return None
        # Those before this one have been asked already.
        others = sys.meta_path[sys.meta_path.index(self) + 1 :]
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next(filter(None, specs), None)
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            return None
        spec.loader = self.loader(fullname, spec.origin)
        return spec

    def go_first(self) -> None:
        """Move before finders added since, such as the one with which pytest rewrites assertions."""
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(self)
        sys.meta_path.insert(0, self)


def _import_experimental_later(neural_tangents: ModuleType) -> None:
    del vars(neural_tangents)["experimental"]  # the placeholder that `_import` left

    def __getattr__(name: str) -> Any:
        if name == "experimental":
            return importlib.import_module("neural_tangents.experimental")
        raise AttributeError(f"module 'neural_tangents' has no attribute {name!r}")

    vars(neural_tangents)["__getattr__"] = __getattr__


def _repair_predict(predict: Any) -> None:
    # Solvers are cached, so they are computed outside of a surrounding `jit`. Where the kernel itself is traced they
    # can't be; `eval_context` used to let tracers through, and refuses them now.
    views = _views()
    core = _View("jax.core", views["jax.core"], {"eval_context": contextlib.nullcontext})
    predict.jax = _View("jax", views["jax"], {"core": core})

    def outside_of_jit(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, kwargs)))
            with contextlib.nullcontext() if traced else jax.ensure_compile_time_eval():
                return function(*args, **kwargs)

        return wrapped

    predict._get_cho_solve = outside_of_jit(predict._get_cho_solve)
    predict._get_fns_in_eigenbasis = outside_of_jit(predict._get_fns_in_eigenbasis)


# Structured derivatives, on JAX's public API.


def _repair_empirical(empirical: Any) -> None:
    from jax.extend.core import Literal

    ad: Any = importlib.import_module("jax.interpreters.ad")
    UndefinedPrimal, Zero = ad.UndefinedPrimal, ad.Zero

    def get_primals_out_and_pullback(
        fn: Callable[..., Any],
        mode: Any,
        _j_rules: bool,
        _s_rules: bool,
        _fwd: bool | None,
        *primals_in: Any,
    ) -> tuple[Any, Callable[..., Any]]:
        # Without `disable_jit` the jitted parts of `jax.numpy` would each be one equation with no structure.
        with jax.disable_jit():
            primals_out, tangent_fn = jax.linearize(fn, *primals_in)
        jaxpr, consts = _linear_jaxpr(tangent_fn, primals_in)

        def pullback(*cotangents: Any) -> Any:
            outs = empirical._backward_pass(
                jaxpr,
                mode=mode,
                consts=consts,
                primals_in=[UndefinedPrimal(v.aval) for v in jaxpr.invars],
                cotangents_in=tuple(jax.tree.leaves(cotangents)),
                _j_rules=_j_rules,
                _s_rules=_s_rules,
                _fwd=_fwd,
            )
            return jax.tree.unflatten(jax.tree.structure(primals_in), outs)

        return primals_out, pullback

    # A linear operand arrives as `UndefinedPrimal`, and as a bare shape once an axis of it has been trimmed away.
    def is_linear(value: Any) -> bool:
        return isinstance(value, UndefinedPrimal | jax.core.ShapedArray)

    def aval(value: Any) -> Any:
        return value.aval if isinstance(value, UndefinedPrimal) else value

    def eqn_jvp(eqn: Any, idx: int, tangents: Any, *invals: Any) -> Any:
        if eqn is None:
            return tangents
        args = [jnp.zeros(aval(v).shape, aval(v).dtype) if is_linear(v) else v for v in invals]
        args[idx] = tangents
        (out,) = _bind(eqn, args)
        return out

    def eqn_vjp(eqn: Any, cotangent: Any, *invals: Any) -> Any:
        if eqn is None:
            return (cotangent,)
        if isinstance(cotangent, Zero):
            return Zero
        linear = [i for i, v in enumerate(invals) if is_linear(v)]

        def apply(*args: Any) -> Any:
            filled = list(invals)
            for i, arg in zip(linear, args, strict=True):
                filled[i] = arg
            (out,) = _bind(eqn, filled)
            return out

        transpose = jax.linear_transpose(apply, *(aval(invals[i]) for i in linear))
        cotangents_out: list[Any] = [None] * len(invals)
        for i, ct in zip(linear, transpose(cotangent), strict=True):
            cotangents_out[i] = ct
        return cotangents_out

    def read_primal(env: Mapping[Any, Any], var: Any) -> Any:
        shape: Any = var.aval
        if isinstance(var, Literal):
            return jnp.asarray(var.val, shape.dtype)  # it may be a Python scalar, and the rules ask for its shape
        return env.get(var, UndefinedPrimal(shape))

    def get_fx_axis_and_dtype(fx: Any, fx_axis: Any, params: Any) -> tuple[Any, Any]:
        # JAX is about to stop taking an array for its dtype.
        dtypes = [leaf.dtype for leaf in jax.tree.leaves(params)]
        if fx_axis is None:
            fx_axis = jax.tree.map(lambda _: None, fx)
        return fx_axis, jnp.result_type(*dtypes) if dtypes else None

    structured = empirical._structured_derivatives_ntk_fn

    def structured_ntk_fn(**options: Any) -> Callable[..., Any]:
        ntk_fn = structured(**options)

        @functools.wraps(ntk_fn)
        def checked(*args: Any, **kwargs: Any) -> Any:
            try:
                return ntk_fn(*args, **kwargs)
            # Not ours: it is how neural-tangents says that a primitive of the network has no structural rule, and
            # only running the network through its rules tells. Users meet a ValueError that names what works.
            except NotImplementedError as error:
                raise UnstructuredNetworkError(
                    "implementation: got NtkImplementation.STRUCTURED_DERIVATIVES for a network of which it has no "
                    "rule for a part, expected NtkImplementation.JACOBIAN_CONTRACTION or NTK_VECTOR_PRODUCTS, which "
                    "work for every network, or AUTO, which chooses among those that work"
                ) from error

        return checked

    implementations = {
        empirical.NtkImplementation.JACOBIAN_CONTRACTION: empirical._jacobian_contraction_ntk_fn,
        empirical.NtkImplementation.NTK_VECTOR_PRODUCTS: empirical._ntk_vector_products_ntk_fn,
        empirical.NtkImplementation.STRUCTURED_DERIVATIVES: structured_ntk_fn,
    }

    def auto_ntk_fn(**options: Any) -> Callable[..., Any]:
        ntk_fns = [implementation(**options) for implementation in implementations.values()]
        cheapest: dict[Any, Callable[..., Any]] = {}

        def ntk_fn(x1: Any, x2: Any, params: Any, **apply_fn_kwargs: Any) -> Any:
            shapes = jax.eval_shape(lambda *everything: everything, (x1, x2, params), apply_fn_kwargs)
            leaves, tree = jax.tree.flatten(shapes)
            key = (tree, *((leaf.shape, leaf.dtype) for leaf in leaves))
            if key not in cheapest:
                cheapest[key] = min(ntk_fns, key=functools.partial(_flops, shapes=shapes))
            return cheapest[key](x1, x2, params, **apply_fn_kwargs)

        return ntk_fn

    empirical._implementation_to_ntk_fn.update({**implementations, empirical.NtkImplementation.AUTO: auto_ntk_fn})
    vars(empirical).update(
        _get_primals_out_and_pullback=get_primals_out_and_pullback,
        _eqn_jvp_fn=eqn_jvp,
        _eqn_vjp_fn=eqn_vjp,
        _get_fx_axis_and_dtype=get_fx_axis_and_dtype,
        _read_primal=read_primal,
    )


class UnstructuredNetworkError(ValueError):
    """A network has no structured derivatives; the other implementations of its tangent kernel work."""


def _flops(ntk_fn: Callable[..., Any], shapes: Any) -> float:
    """Count the operations of the compiled function; infinitely many if it can't be computed at all."""
    args, kwargs = shapes
    try:
        cost = jax.jit(ntk_fn).lower(*args, **kwargs).compile().cost_analysis()
    except UnstructuredNetworkError:
        return float("inf")
    return (cost or {}).get("flops", float("inf"))


# Primitives that only call the function they carry, by the name that each had from `OLDEST_JAX` on.
_CALLS = {
    "checkpoint",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "jit",
    "pjit",
    "remat",
    "remat2",
}


def _linear_jaxpr(tangent_fn: Callable[..., Any], primals: Any) -> tuple[SimpleNamespace, list[Any]]:
    """Trace a linear function into equations that are each linear in its arguments; also give the constants."""
    from jax.extend.core import Literal

    staged = jax.make_jaxpr(tangent_fn)(*primals)
    flat = jax.make_jaxpr(lambda *args: _evaluate(staged.jaxpr, staged.consts, args))(*jax.tree.leaves(primals))
    constants = dict(zip(flat.jaxpr.constvars, flat.consts, strict=True))
    linear = set(flat.jaxpr.invars)
    eqns = []
    for eqn in flat.jaxpr.eqns:
        if any(not isinstance(v, Literal) and v in linear for v in eqn.invars):
            eqns.append(eqn)
            linear.update(eqn.outvars)
        else:  # such as the forward pass that `jax.checkpoint` repeats
            args = [v.val if isinstance(v, Literal) else constants[v] for v in eqn.invars]
            constants.update(zip(eqn.outvars, _bind(eqn, args), strict=True))
    # An equation whose outputs nobody reads would get no cotangent.
    needed = {v for v in flat.jaxpr.outvars if not isinstance(v, Literal)}
    live = []
    for eqn in reversed(eqns):
        if not needed.isdisjoint(eqn.outvars):
            live.append(eqn)
            needed.update(v for v in eqn.invars if not isinstance(v, Literal))
    jaxpr = SimpleNamespace(
        invars=flat.jaxpr.invars, outvars=flat.jaxpr.outvars, constvars=list(constants), eqns=live[::-1]
    )
    return jaxpr, list(constants.values())


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluate a jaxpr, and those that its equations call, one primitive at a time."""
    from jax.extend.core import Literal

    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(var: Any) -> Any:
        return var.val if isinstance(var, Literal) else env[var]

    for eqn in jaxpr.eqns:
        invals = [read(v) for v in eqn.invars]
        name = eqn.primitive.name
        if name in _CALLS:
            called = eqn.params["jaxpr" if "jaxpr" in eqn.params else "call_jaxpr"]
            outs = _evaluate(getattr(called, "jaxpr", called), getattr(called, "consts", ()), invals)
        elif name == "split":
            outs = _split(invals[0], **eqn.params)
        else:
            outs = _bind(eqn, invals)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _split(x: Any, *, sizes: Sequence[int], axis: int) -> list[Any]:
    """Split as the primitive does, which has several outputs, by slices, which have one each."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [jax.lax.slice_in_dim(x, start, start + size, axis=axis) for start, size in zip(starts, sizes, strict=True)]


def _bind(eqn: Any, args: Sequence[Any]) -> list[Any]:
    bind_params = eqn.primitive.get_bind_params(eqn.params)
    # Older JAX gives the functions that a primitive is bound to separately.
    functions, params = bind_params if isinstance(bind_params, tuple) else ((), bind_params)
    out = eqn.primitive.bind(*functions, *args, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


_REPAIRS: dict[str, Callable[[ModuleType], None]] = {
    "neural_tangents": _import_experimental_later,
    "neural_tangents._src.empirical": _repair_empirical,
    "neural_tangents._src.predict": _repair_predict,
}
_FINDER = _Finder()


def _install() -> None:
    _check_jax_version(jax.__version__)
    # `None` stands for a module that is not to be imported.
    loaded = [name for name, module in sys.modules.items() if module and name.partition(".")[0] == "neural_tangents"]
    if "neural_tangents" in loaded:
        if type(sys.modules["neural_tangents"].__loader__).__module__ != __name__:
            raise ImportError(
                "neural_tangents was imported before ntkit, which repairs it while it is imported. "
                "Put `import ntkit` before `import neural_tangents`."
            )
    else:
        # Where `import neural_tangents` failed before, the parts that it did import are still there, unrepaired.
        for name in loaded:
            del sys.modules[name]
    _FINDER.go_first()


_install()


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(load(), name)
