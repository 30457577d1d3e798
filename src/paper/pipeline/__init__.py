"""What runs an experiment: the check, notebooks as stages, the command, profiles, publishing, prediction."""

import sys

# nbformat's validator would build a grammar of internationalised addresses, which no notebook of ours holds: 0.8 s at
# every start of a stage. It goes on without, where this package cannot be imported.
sys.modules.setdefault("rfc3987_syntax", None)
