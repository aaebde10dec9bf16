"""Search for mistakes in source files: each call that drops is judged by the values that can reach it."""

from puredrop.linting.source.checking import Progress, check_files, check_paths, check_text
from puredrop.linting.source.fixing import fix_files, fix_text

__all__ = ["Progress", "check_files", "check_paths", "check_text", "fix_files", "fix_text"]
