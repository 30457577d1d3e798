"""The report's tables and sentences once more, from the committed records alone: no model, no image is needed."""

import html
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from multishield import records
from multishield.errors import UserError
from paper import paths
from paper.params import Params
from paper.pipeline.publish import KEPT
from paper.report import report


def audit() -> None:
    """Make the tables and sentences of reports/ and each folder of results/ again. Raises UserError if they differ."""
    for folder in (paths.reports(), *sorted((paths.root() / "results").glob("*/"))):
        params, name = Params.load(next(folder.glob("params.yaml"), None)), folder.relative_to(paths.root())
        with TemporaryDirectory() as place:
            given = {file.stem: records.load(file) for file in folder.glob("*.csv") if file.name not in KEPT}
            report.write(given, params, Path(place))
            files = {file: folder / file.relative_to(place) for file in sorted(Path(place).rglob("*.*"))}
            wrong = [of for file, of in files.items() if not of.exists() or file.read_bytes() != of.read_bytes()]
            said = re.sub(r"\*\*|(?m:^- )", "", Path(place, "sentences.md").read_text(encoding="utf-8"))
        page = html.unescape(re.sub("<[^>]+>", "", (folder / "index.html").read_text(encoding="utf-8")))
        wrong += [line for line in said.splitlines() if line not in page]
        if wrong:
            raise UserError(f"the records in {name} give something else than {wrong[0]}; restore {name}")
        print(f"{name}: {len(files)} files and the page's sentences are what the records give")
