"""Prints the figures of docs/architecture.md about the tree: `python docs/site/figures.py [CHECKOUT]`."""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("ingest", "schemas", "stores", "workers", "client", "gateway", "stack", "cli", "trainwire")
_NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def main() -> None:
    """Print the figures of a checkout, by default of this one."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2])
    modules = {_name(path.relative_to(root)): path for path in _modules(root)}
    trees = {name: ast.parse(path.read_text()) for name, path in modules.items()}
    rooms = Counter(name.rpartition(".")[0] for name in modules)
    leaves = Counter(name.rpartition(".")[2] for name in modules)
    classes = Counter(
        node.name for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
    )
    importers = defaultdict(set)
    for name, tree in trees.items():
        for imported in _imports(tree, modules):
            importers[imported].add(name)
    docstrings = [text for tree in trees.values() for text in _docstrings(tree)]
    print(f"modules: {len(modules)}")
    print(f"modules in the largest rooms: {', '.join(f'{room} {count}' for room, count in rooms.most_common(6))}")
    print(f"modules that share their name with another: {sum(count for count in leaves.values() if count > 1)}")
    print(f"classes that share their name with another: {sum(count for count in classes.values() if count > 1)}")
    print(f"modules with one importer: {sum(len(others) == 1 for others in importers.values())}")
    print(f"lines: {sum(path.read_text().count(chr(10)) for path in modules.values())}")
    print(f"lines of code: {sum(_code_lines(path.read_text(), trees[name]) for name, path in modules.items())}")
    several = sum("\n" in text.strip() for text in docstrings)
    print(f"docstrings: {len(docstrings)}, {several * 100 // len(docstrings)}% of more than one line")


def _modules(root: Path) -> Iterator[Path]:
    """Yield the product's files, without package files and migrations."""
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            inside = path.relative_to(root)
            is_link = any((root / parent).is_symlink() for parent in inside.parents if parent.name)
            if path.name != "__init__.py" and "versions" not in path.parts and not is_link:
                yield path


def _name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts)


def _imports(tree: ast.AST, modules: dict[str, Path]) -> Iterator[str]:
    """Yield the modules of ours that a module imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            package = node.module.removeprefix("trainwire.")
            for alias in node.names:
                name = f"{package}.{alias.name}"
                if name in modules or package in modules:
                    yield name if name in modules else package


def _docstrings(tree: ast.AST) -> Iterator[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    yield from (text for node in ast.walk(tree) if isinstance(node, kinds) and (text := ast.get_docstring(node)))


def _code_lines(source: str, tree: ast.AST) -> int:
    """Count the lines that are neither blank nor comment nor docstring."""
    texts = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    code = {
        line for token in tokens if token.type not in _NO_CODE for line in range(token.start[0], token.end[0] + 1)
    }
    return len(code - texts)


if __name__ == "__main__":
    main()
