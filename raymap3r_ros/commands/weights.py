"""`raymap3r weights`: fetch public weights into the cache, import others, list, verify and remove them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from raymap3r_ros.commands import arguments
from raymap3r_ros.errors import CheckpointError, OptionError
from raymap3r_ros.network.catalog import PUBLIC_WEIGHTS, cache_folder, cached_weights, named_weights, shipped_weights
from raymap3r_ros.tables import text_table
from raymap3r_ros.text import listing, printable, size_text
from raymap3r_ros.weights import fetch, import_file, remove, verify
from raymap3r_ros.weights.store import downloads, read_record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `raymap3r weights`."""
    parser.description = (
        "Weights by name. What is fetched or imported is converted once and lies in a cache; then its name is a "
        "--checkpoint of every command and a `checkpoint` of the node, without a network connection. The cache is in "
        "$RAYMAP3R_HOME, else in raymap3r_ros in $XDG_CACHE_HOME or ~/.cache."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="show names, sizes, licences and the content of the cache")

    command = actions.add_parser("fetch", help="download public weights, verify and convert them")
    command.add_argument("name", metavar="NAME", help=f"{' or '.join(_supported())}")
    command.add_argument(
        "--accept-license", action="store_true", help="accept the licence that is shown; otherwise type yes"
    )
    command.add_argument("--keep-original", action="store_true", help="keep the .pth file in the cache")

    command = actions.add_parser("import", help="convert a file of weights into the cache")
    command.add_argument(
        "file", type=arguments.path, metavar="FILE", help="a public .pth, or a .safetensors of this package"
    )
    command.add_argument(
        "--name", default="", metavar="NAME", help="name in the cache (default: of the public weights, or of the file)"
    )
    command = actions.add_parser("verify", help="compare the files of the cache with the recorded SHA-256")
    command.add_argument("name", nargs="?", default="", metavar="NAME", help="only these weights (default: all)")
    command = actions.add_parser("path", help="print the path of the file of a name")
    command.add_argument("name", metavar="NAME", help="weights of the package or the cache")
    command = actions.add_parser("remove", help="remove weights from the cache")
    command.add_argument("name", metavar="NAME", help="weights of the cache")


def run(args: argparse.Namespace) -> int:
    """Run one action; return the exit status."""
    return _ACTIONS[args.action](args)


def _list(_: argparse.Namespace) -> int:
    shipped, cached = shipped_weights(), cached_weights()
    lines = [["name", "download", "on disk", "licence", "state"]]
    lines += [[name, "", _size(path), "Apache-2.0", "part of the package"] for name, path in shipped.items()]
    for name, weights in PUBLIC_WEIGHTS.items():
        state = f"not in the cache: raymap3r weights fetch {name}"
        if weights.unsupported:
            state = "not supported, see docs/weights.md"
        elif name in cached:
            state = "in the cache" + (", with the .pth" if cached[name].with_suffix(".pth").is_file() else "")
        elif arrived := max((path.stat().st_size for path in downloads(name)), default=0):
            state = f"incomplete, {size_text(arrived)}: raymap3r weights fetch {name}"
        on_disk = _size(cached[name]) if name in cached else "-"
        lines.append([name, size_text(weights.bytes), on_disk, weights.licence, state])
    for name, path in cached.items():
        if name not in PUBLIC_WEIGHTS:
            record = read_record(path)
            licence = printable(record.get("licence", "unknown"), 60)
            lines.append([name, "", _size(path), licence, "imported" if record else "without a record"])
    print(text_table(lines, right=(1, 2)))
    print(f"cache: {printable(cache_folder())}")
    return 0


def _fetch(args: argparse.Namespace) -> int:
    weights = PUBLIC_WEIGHTS.get(args.name)
    if weights is None:
        raise OptionError(f"NAME is {args.name!r}; weights that can be fetched: {listing(_supported())}")

    def accept() -> str:
        print(f"{weights.name}: {weights.licence}\n\n{weights.notice}\n")
        if args.accept_license:
            return "--accept-license"
        if sys.stdin is not None and sys.stdin.isatty():
            print("Type yes to accept this licence: ", end="", flush=True)
            if sys.stdin.readline().strip() == "yes":
                return "typed yes"
        raise OptionError(
            f"the licence of {weights.name} was not accepted, and nothing was downloaded; type yes on a terminal, or "
            "give --accept-license"
        )

    print(f"{weights.name}: {printable(fetch(weights, accept, keep_original=args.keep_original, report=_report))}")
    return 0


def _import(args: argparse.Namespace) -> int:
    path = import_file(args.file, args.name, _report)
    print(f"{path.stem}: {printable(path)}")
    if notice := read_record(path).get("notice"):
        print(f"\n{notice}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    checks = verify(args.name)
    for check in checks:
        print(f"{'FAIL' if check.problem else 'ok':4}  {printable(check.path)}")
        if check.problem:
            name = check.path.stem
            print(f"      {check.problem}; remove it, then fetch or import it again: raymap3r weights remove {name}")
    if not checks:
        print(f"the cache is empty: {printable(cache_folder())}")
    return 1 if any(check.problem for check in checks) else 0


def _path(args: argparse.Namespace) -> int:
    path = named_weights(args.name)
    if path is None:
        raise CheckpointError(f"{args.name} is neither in the package nor in {cache_folder()}; raymap3r weights list")
    print(path)
    return 0


def _remove(args: argparse.Namespace) -> int:
    print(f"removed {args.name}: {size_text(remove(args.name))}")
    return 0


def _supported() -> list[str]:
    return [name for name, weights in PUBLIC_WEIGHTS.items() if not weights.unsupported]


def _size(path: Path) -> str:
    return size_text(path.stat().st_size)


def _report(line: str) -> None:
    print(printable(line), flush=True)


_ACTIONS = {
    "list": _list,
    "fetch": _fetch,
    "import": _import,
    "verify": _verify,
    "path": _path,
    "remove": _remove,
}
