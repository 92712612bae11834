#!/usr/bin/env bash
# `make run` runs this script in the environment. The script trains on PTB (on the copy that INPUT names, if any), or on
# the built-in demo corpus if PTB cannot be downloaded.
demo_word=violin # a word of the demo corpus, whose neighbours are other instruments

# Prints a command and runs it. If the command fails, exits with its exit code.
run() {
    echo "\$ $*"
    "$@" || exit $?
}

train() { # RUN ARGUMENTS...: does nothing if the run is finished; resumes a run that was interrupted
    if [ -e "$1/summary.json" ]; then
        echo "$1 is already finished; to train it again: rm -r $1"
    else
        run torchrun training/train.py --nproc 4 --resume auto "${@:2}"
    fi
}

show() { # RUN WORD: prints the neighbours of the word, and the files of the run
    run python -m training.neighbors "$1" "$2"
    echo
    echo "$1 holds the run. Where to look:"
    for entry in "report.html  the report, for a browser" "loss.png  the loss" "metrics.jsonl  the loss as numbers" \
        "vectors.safetensors  the vectors, for Vectors.load" "vocab.parquet  the words, with counts"; do
        if [ -e "$1/${entry%%  *}" ]; then printf '  %s  %s\n' "$1/${entry%%  *}" "${entry#*  }"; fi
    done
    echo "  source .venv/bin/activate; python -m training.neighbors $1 WORD...  the neighbours of other words"
    echo "  python -m training.export $1 --format word2vec --output FILE  the vectors for gensim and similar programs"
    echo "  README.md and docs/  how to use your own text or more machines, and what the terms mean"
}

ptb_is_unavailable() { # EXIT-CODE of prepare_ptb
    [ "$1" = 2 ] && [ -z "$INPUT" ] && [ ! -e data/cache/ptb.train.txt ] && [ ! -e data/ptb/manifest.json ]
}

if [ -n "$INPUT" ]; then
    run spark-submit jobs/prepare_ptb.py --input "$INPUT"
elif [ ! -e runs/ptb/summary.json ]; then
    echo "\$ spark-submit jobs/prepare_ptb.py"
    spark-submit jobs/prepare_ptb.py
    code=$?
    if ptb_is_unavailable $code; then
        echo
        echo "*** PTB is not available (see above). Continuing with the BUILT-IN DEMO CORPUS, a small generated ***"
        echo "*** text, in data/demo and runs/demo. To use PTB: make run INPUT=path/to/ptb.train.txt             ***"
        echo
        run spark-submit jobs/prepare_demo.py
        train runs/demo --data data/demo --output runs/demo
        show runs/demo $demo_word
        exit
    fi
    [ $code = 0 ] || exit $code
fi
train runs/ptb
show runs/ptb chip
