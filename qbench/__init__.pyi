from qbench.notebook import fit as fit
from qbench.notebook import load_run as load_run
from qbench.notebook import plan as plan
from qbench.notebook import rank as rank
from qbench.notebook_results import compare as compare
from qbench.notebook_results import figures as figures
from qbench.records.fits import Fit as Fit
from qbench.records.record import Record as Record
from qbench.scenario.schema import Point as Point

__version__: str
__all__: list[str]
