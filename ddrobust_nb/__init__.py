__version__ = "0.1.0"


def __getattr__(name):
    "Names of `ddrobust_nb.all` and modules, imported when you first use one"
    import importlib
    import importlib.util

    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if importlib.util.find_spec(f"{__name__}.{name}"):
        return importlib.import_module(f"{__name__}.{name}")
    everything = importlib.import_module(f"{__name__}.all")
    if not hasattr(everything, name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(everything, name)


def __dir__():
    import importlib

    return sorted({*globals(), *importlib.import_module(f"{__name__}.all").__all__})
