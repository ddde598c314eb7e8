#!/bin/bash
# A run of any length in jobs of a day: each goes on where the last stopped, and asks for the next itself.
#
#     sbatch examples/slurm.sh moire-n54 runs/n54
#     sbatch --nodes 4 --ntasks-per-node 1 examples/slurm.sh moire-n54 runs/n54 --distributed
#
#SBATCH --job-name qernel
#SBATCH --time 24:00:00
#SBATCH --gpus-per-node 1
#SBATCH --signal TERM@120
#SBATCH --requeue
#SBATCH --open-mode append

preset=$1
run=$2
shift 2

# A save and two steps before the time is over; the signal above is for what was not foreseen.
srun qernel train "$preset" --run "$run" --walltime "${WALLTIME:-23h50m}" "$@" || exit

# What failed is not repeated; what was stopped is.
qernel status "$run" || scontrol requeue "$SLURM_JOB_ID"
