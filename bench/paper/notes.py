"""What a reader must know beside the figures. It goes into the document and the page as it stands here."""

from __future__ import annotations

HOW = (
    "Every method begins with tiny-omni trained on for 300 steps on its own corpus with 95 % of the critiques in it "
    "careless. The shipped model names what is wrong exactly at temperature 0 before anybody has said a word, so that "
    "language feedback would have nothing to teach its critique model; of the careless one's critiques two or three "
    "in a hundred are exact. It answers and refines as the shipped one does.",
    "Each round has 640 logged answers of the training split. People annotate the first of them; every method may use "
    "all the prompts: language methods refine what their critique model finds wrong, in logged and in fresh answers, "
    "PPO samples answers to them.",
    "A person who prefers one of two answers says which has fewer faults; where both have as many, the annotation is "
    "spent and tells nothing (about half of them). One critique in ten names only some of several faults.",
    "From the second round on, the gate of the service decides on 30 prompts per subtask of its own split whether new "
    "weights replace the old ones, and a quarter of the pairs are of the round before.",
    "Reward models of both kinds read the answer and what the critique model says of it: the careless one's words for "
    "binary feedback, which has no words to teach another, the taught one's for language feedback.",
    "Every method has the same base, the same prompts and the same number of annotations by people. Of one seed, "
    "binary methods get a preference between two answers to a prompt where language methods get a critique of one. "
    "What a method makes of the prompts that nobody annotated is its own affair.",
    "The people are a program, the world's annotator: exact by rule, in few words. People say more, and less exactly.",
    "An answer is right when the world's judge finds every asked dimension right in the pixels, samples, frames or "
    "words. Held-out prompts ask for combinations of attributes that no training prompt has; each gets one answer.",
    "A gain is the difference from the base on the same held-out prompts of the same seed, in percentage points; the "
    "mean is over the eight subtasks.",
)

# Where the settings of the methods were tried out: each entry one sentence.
TUNED: tuple[str, ...] = (
    "Settings were tried on combinations of the gate's split with seed 100, at 80 annotations, 60 prompts per subtask; "
    "neither these prompts nor that seed stand in the tables.",
    "DPO on preferences, rate x epochs, mean success there: 4e-4 x 2: 61.1 %, 8e-4 x 2: 65.1, 4e-4 x 4: 66.6 (taken), "
    "2e-4 x 4: 63.1; the base 50.8.",
    "LLF-DPO: 2e-4 x 1: 77.2 %, 2e-4 x 2: 82.4 (taken), 1e-4 x 2: 80.4, 2e-4 x 2 with beta 0.3: 83.8.",
    "PPO's rates and turns were found with another reward, the shipped critique model's verdicts, and are the same for "
    "both kinds of feedback: LLF-PPO 80.9 %, PPO 45.4. For PPO on preferences other settings were tried afterwards: a "
    "reward model that reads answers alone 41.8 %, an actor's rate of 5e-5 49.8, a weight of KL of 0.2 50.8; none "
    "beats the base, 50.8.",
    "The rounds were first run without the gate: 83.7, 87.4, 83.0, 83.4 %; seeing the third fall, the gate and the "
    "earlier pairs, which the service has, were put in.",
)

CAUTION = (
    "The worlds differ: the paper trains models of 7 to 13 billion parameters on what people wrote and scores them "
    "with benchmarks in units of their own; here a model of a few million parameters is trained on a program's "
    "annotations and judged exactly, in percentage points. Compare the signs and the order of the methods, not the "
    "figures."
)
