"""Sources of modules for the tests of the check, and the codes found in them."""

from puredrop.linting.source import check_text

HEAD = "import torch\nimport torch.nn as nn\nimport torch.nn.functional as F\n"


def found(text):
    return [finding.code for finding in check_text(HEAD + text)]


def method(body, init="", name="forward", arguments="self, x"):
    """The source of a module whose forward has a body."""
    lines = "".join(f"        {line}\n" for line in body.split("\n"))
    made = f"    def __init__(self, p, on=False):\n        super().__init__()\n        {init}\n" if init else ""
    return f"class A(nn.Module):\n{made}    def {name}({arguments}):\n{lines}"
