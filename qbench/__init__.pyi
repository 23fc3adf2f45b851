from types import ModuleType
from typing import Any

from qbench.notebook import compare as compare
from qbench.notebook import figures as figures
from qbench.notebook import load_run as load_run
from qbench.notebook import plan as plan

__version__: str

class CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
