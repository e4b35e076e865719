"""The learner: logged feedback to examples, to a critique model, to preference pairs, to a candidate; and the gate."""
