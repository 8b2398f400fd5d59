"""Public layouts of labelled people -> shards; see docs/importers.md."""

from data_modules.importers.base import Importer, ImportFailedError, RejectedError, Source
from data_modules.importers.coco import CocoImporter
from data_modules.importers.matting import MattingImporter, RgbaImporter, p3m
from data_modules.importers.plain import FolderImporter, ListImporter
from data_modules.importers.renders import RendersImporter
from data_modules.importers.segmentation import SegmentationImporter, cihp, lip

__all__ = [
    "CocoImporter",
    "FolderImporter",
    "ImportFailedError",
    "Importer",
    "ListImporter",
    "MattingImporter",
    "RejectedError",
    "RendersImporter",
    "RgbaImporter",
    "SegmentationImporter",
    "Source",
    "cihp",
    "lip",
    "p3m",
]
