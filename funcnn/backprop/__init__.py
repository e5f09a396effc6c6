"""The hand-written backward pass, as a value that can be opened, checked and replaced."""

from funcnn.backprop.bridge import with_rules as with_rules
from funcnn.backprop.engine import LayerRecord as LayerRecord
from funcnn.backprop.engine import record as record
from funcnn.backprop.engine import value_and_grad as value_and_grad
from funcnn.backprop.engine import vjp as vjp
from funcnn.backprop.rule import Context as Context
from funcnn.backprop.rule import Rule as Rule
from funcnn.backprop.rule import RuleError as RuleError
from funcnn.backprop.rule import Rules as Rules
from funcnn.backprop.rule import Static as Static
from funcnn.backprop.rules import RULES as RULES
