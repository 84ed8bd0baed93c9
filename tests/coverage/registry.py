"""The models that must come back whole: one table."""

from types import MappingProxyType

from tests.coverage import handwritten, zoo
from tests.coverage.entry import Entry

# A module with more nets registers them here: a tuple named ENTRIES.
_ALL = (*zoo.torchvision_entries(), *zoo.timm_entries(), *handwritten.ENTRIES)

ENTRIES: MappingProxyType[str, Entry] = MappingProxyType({entry.name: entry for entry in _ALL})
assert len(ENTRIES) == len(_ALL), "two entries share a name"
