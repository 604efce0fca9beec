"""How much the search for misleading groups tries, for those who search and for those who predict what it costs. Imports nothing."""

DRAWS = 200  # random silencers in the control of a group that may be called misleading
FIRST_DRAWS = 20  # after which a group that does no more than they do is left alone
ENOUGH_WRONG = 12  # wrong images, for a half of them to tell anything
WRONG_PER_HALF, RIGHT_PER_HALF, CONTROL_IMAGES = 96, 192, 48  # images looked at, at most
PRESENCE_IMAGES = 1000  # in which the circuit's groups are looked for, where no survey of the folder tells of all: dozens of passes each
LAYERS = 8  # that contrast groups are looked for in, about
SCOPES = ("image", "position", "anywhere")  # a mark is everywhere, has a place, or is everywhere and some places betray it
SHARES = (0.5, 0.65, 0.8)  # of the way from usual to typical, from which an image counts as marked
RANKS = (0, 32)  # of the variation of what is taken away
BEST = 3  # of all that is tried on one fold, measured on the other too
FINALISTS = 3  # layers and scopes that are refined
STEPS = (15, 40)  # of refining a pattern
FIRST_STEPS, WHOLE_STEPS, WHOLE_RANKS = 15, 80, (0, 8)  # of refining filter, pattern and variation: at a first look, and of a finalist
WHOLE_SHARES = (0.35, 0.5, 0.65, 0.8)  # from which an image counts as marked, once they are refined
REFINED = (  # steps, at most
    FINALISTS * sum(STEPS) + BEST * max(STEPS) + LAYERS * FIRST_STEPS + (FINALISTS * len(WHOLE_RANKS) + BEST + 1) * WHOLE_STEPS
)
PER_STEP = 32  # images: half of them wrong, a quarter right ones of the target, a quarter right ones of other classes
