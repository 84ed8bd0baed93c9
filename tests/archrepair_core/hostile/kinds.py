"""The whole corpus: what the gate must refuse, and what passes it and must end in the engine."""

from tests.archrepair_core.hostile.archives import Table
from tests.archrepair_core.hostile.behaviour import BEHAVIOUR
from tests.archrepair_core.hostile.pickles import PICKLES
from tests.archrepair_core.hostile.programs import CONSTRUCTS, OPERATORS
from tests.archrepair_core.hostile.zips import ZIPS

# By the part of the archive that is hostile.
REFUSED: dict[str, Table] = {"zip": ZIPS, "pickle": PICKLES, "operator": OPERATORS, "code": CONSTRUCTS}
REFUSED_BY_THE_GATE: Table = {name: kind for table in REFUSED.values() for name, kind in table.items()}
ENDED_BY_THE_ENGINE: Table = BEHAVIOUR
