#!/usr/bin/env bash
# What `make run` does, in the environment: PTB, or the built-in demo corpus where PTB cannot be had. INPUT names a text.
demo_word=violin # of the demo corpus; a group of instruments stands around it

# Prints a command, runs it, and ends here with its exit code if it fails.
run() {
    echo "\$ $*"
    "$@" || exit $?
}

train() { # RUN ARGUMENTS...: not again where it is finished, and on where it was interrupted
    if [ -e "$1/summary.json" ]; then
        echo "$1 is finished already; rm -r $1 to train it again."
    else
        run torchrun training/train.py --nproc 4 --resume auto "${@:2}"
    fi
}

show() { # RUN WORD: its neighbours, and where everything is
    run python -m training.neighbors "$1" "$2"
    echo
    echo "$1 holds the run. Where to look:"
    for entry in "report.html  how the run went, in a browser" "loss.png  its loss" "metrics.jsonl  the same in numbers" \
        "vectors.safetensors  the vectors, for Vectors.load" "vocab.parquet  their words, with counts"; do
        if [ -e "$1/${entry%%  *}" ]; then printf '  %s  %s\n' "$1/${entry%%  *}" "${entry#*  }"; fi
    done
    echo "  source .venv/bin/activate; python -m training.neighbors $1 WORD...  the neighbours of other words"
    echo "  python -m training.export $1 --format word2vec --output FILE  the vectors for gensim and its like"
    echo "  README.md and docs/  your own text, more machines, what everything means"
}

ptb_cannot_be_had() { # EXIT-CODE of prepare_ptb
    [ "$1" = 2 ] && [ -z "$INPUT" ] && [ ! -e data/cache/ptb.train.txt ] && [ ! -e data/ptb/manifest.json ]
}

if [ -n "$INPUT" ]; then
    run spark-submit jobs/prepare_ptb.py --input "$INPUT"
elif [ ! -e runs/ptb/summary.json ]; then
    echo "\$ spark-submit jobs/prepare_ptb.py"
    spark-submit jobs/prepare_ptb.py
    code=$?
    if ptb_cannot_be_had $code; then
        echo
        echo "*** PTB could not be had (above), so this goes on with the BUILT-IN DEMO CORPUS, a small generated text: ***"
        echo "*** data/demo and runs/demo, not data/ptb and runs/ptb. For PTB: make run INPUT=path/to/ptb.train.txt    ***"
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
