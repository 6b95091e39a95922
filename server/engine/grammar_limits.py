"""What compiling a grammar, and each step of following it, may take. Apart, so that the checking child stays small."""

from llguidance import LLParserLimits

LIMITS = LLParserLimits(verbose_errors=False)
"""llguidance's own defaults, some 20 ms each at the worst. Its verbose errors would put the grammar into the log."""
