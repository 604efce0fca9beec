"""How much the search for misleading groups tries, for those who search and for those who predict what it costs. Imports nothing."""

DRAWS = 200  # random silencers in the control of a group that may be called misleading
FIRST_DRAWS = 20  # after which a group that does no more than they do is left alone
ENOUGH_WRONG = 12  # wrong images, for a half of them to tell anything
WRONG_PER_HALF, RIGHT_PER_HALF, CONTROL_IMAGES = 96, 192, 48  # images looked at, at most
LAYERS = 8  # that contrast groups are looked for in, about
SCOPES = ("image", "position")  # a mark is everywhere, or has a place
FINALISTS = 2  # layers and scopes that a first look finds most promising
BEST = 3  # of all that is tried on one fold, measured on the other too
FIRST_STEPS, STEPS = 15, 80  # of refinement: at a first look, and of a finalist
REFINEMENTS = ((0, 8.0), (0, 25.0), (8, 8.0), (8, 25.0))  # of a finalist: rank of the variation, weight of right images
AT_LENGTH = (FINALISTS + 1) * len(REFINEMENTS) + BEST + 1  # refinements of all steps, at most: the earliest layer is a finalist too
PER_STEP = 32  # images: half of them wrong, a quarter right ones of the target, a quarter right ones of other classes
