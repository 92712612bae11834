# Read by spark-submit and pyspark at every start; written by `make setup`.
# A JAVA_HOME that is not the one of that time was chosen since, and stays.
if [ "${JAVA_HOME:-}" = @JAVA_HOME@ ]; then
    JAVA_HOME=@WRAPPER_HOME@
fi
# Java reads and writes file names in the locale's encoding; without a UTF-8 one, other letters would become "?".
case "${LC_ALL:-${LC_CTYPE:-${LANG:-}}}" in
*[Uu][Tt][Ff]*8*) ;;
*) export LC_ALL=C.UTF-8 ;;
esac
