# Read by spark-submit and pyspark at every start; written by `make setup`.
# A JAVA_HOME that is not the one of that time was chosen since, and stays.
if [ "${JAVA_HOME:-}" = @JAVA_HOME@ ]; then
    JAVA_HOME=@WRAPPER_HOME@
fi
