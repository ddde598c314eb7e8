#!/bin/bash
# A phase diagram with its check for hysteresis, in legs: every call does what is next for so many seconds at most.
#
#     examples/legs.sh moire-n54 runs/n54 540
#
# until it says that all is done (exit code 0; 3: call it again; else something failed). What it makes in that folder:
#
#     deep                λ = 2 alone; then
#     family              all couplings, from there: the model
#     shallow             λ = 0.25 alone; then
#     family-from-shallow all couplings, from there: the other side of the hysteresis
#     family/report.html  its scan and transition, beside the other's
#
# The deepest coupling first because weights that know the liquid alone keep it (docs/phase-diagram.md), and alone because
# a family from scratch was caught between the phases where one coupling was not (docs/reproduction.md). Steps, couplings,
# walkers and the rest are set in the environment, e.g. STEPS=5000 examples/legs.sh …, before the first call: a stage that has
# ended is not lengthened. Further arguments go to the two fresh trainings.
set -u

preset=$1
folder=$2
limit=$3
shift 3
: "${FIRST:=2000}"       # steps of deep and of shallow
: "${STEPS:=12000}"      # steps of family
: "${CHECK:=4000}"       # steps of family-from-shallow
: "${COUPLINGS:=32}"     # of family and family-from-shallow
: "${WALKERS:=32}"       # at each of them, and of the scan at each point
: "${ALONE:=$((COUPLINGS * WALKERS))}" # walkers of deep and of shallow: all of them
: "${POINTS:=36}"        # of the scan
: "${REFERENCES:=$(dirname "$0")/../references/$preset-hf.json}" # Hartree-Fock to draw beside it, if there is such a file

# train NAME qernel-arguments: until its steps are done, or the time is.
train() {
    local run=$folder/$1
    shift
    qernel status "$run" >/dev/null 2>&1 && return
    ((limit - SECONDS > 45)) || exit 3
    qernel "$@" --run "$run" --walltime $((limit - SECONDS))s || exit
    qernel status "$run" || exit 3
}

# scan NAME: once, in a call of its own where training has taken the time, since it cannot go on in the next.
scan() {
    [ -f "$folder/$1/results.nc" ] && return
    ((4 * SECONDS < limit && limit - SECONDS > 90)) || exit 3
    qernel scan "$folder/$1" --lam 0.25 2 "$POINTS" --walkers "$WALKERS" --walltime $((limit - SECONDS - 30))s \
        --observables density structure_factor order_parameter pair_correlation susceptibility || exit
}

train deep train "$preset" --train_at.lam 2 2 1 --sampling.walkers "$ALONE" --steps "$FIRST" "$@"
train family finetune "$folder/deep" --lam 0.25 2 "$COUPLINGS" --sampling.walkers "$WALKERS" --steps "$STEPS"
scan family
train shallow train "$preset" --train_at.lam 0.25 0.25 1 --sampling.walkers "$ALONE" --steps "$FIRST" "$@"
train family-from-shallow finetune "$folder/shallow" --lam 0.25 2 "$COUPLINGS" --sampling.walkers "$WALKERS" --steps "$CHECK"
scan family-from-shallow
qernel transition "$folder/family" || exit
references=()
[ -f "$REFERENCES" ] && references=(--references "$REFERENCES")
qernel report "$folder/family" --compare "$folder/family-from-shallow" "${references[@]}"
