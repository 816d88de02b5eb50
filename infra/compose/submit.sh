#!/bin/sh
# Join the cluster with a node that offers nothing, run one job on it, and end as the job ends.
#
#   submit.sh DATASET [options of specbatch submit]
set -eu

ray start --address=head:6379 --num-cpus=0 --object-store-memory=83886080 >&2
exec specbatch submit "$@" --address head:6379
