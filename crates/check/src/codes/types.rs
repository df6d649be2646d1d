//! CD03xx: types and units.

codes! {
    WRONG_TYPE = "CD0301" Error "wrong type";
    "The value has another type or unit than the setting takes. Nothing is converted silently: `5` is not `5s`, and `\"true\"` is not `true`."
    bad "stage build {\n  timeout = \"30m\"\n  run \"make\"\n}\n"
    good "stage build {\n  timeout = 30m\n  run \"make\"\n}\n"

    BAD_OPERATION = "CD0302" Error "operator does not take these types";
    "Values have units, and an operator takes only those that make sense together: a percentage and a duration can't be added, and an \
     error rate can't be compared with two seconds."
    bad "stage build {\n  timeout = 5m + 10%\n  run \"make\"\n}\n"
    good "stage build {\n  timeout = 20m * 1.1\n  run \"make\"\n}\n"

    UNKNOWN_TYPE = "CD0303" Error "unknown type";
    "The types are `string int number bool percent duration size version`, `list(T)` and `map(T)`."
    bad "param count: integer = 3\nstage build { run \"make ${count}\" }\n"
    good "param count: int = 3\nstage build { run \"make ${count}\" }\n"

    BAD_ARGUMENTS = "CD0304" Error "function does not take these arguments";
    "The function is called with too few or too many arguments, or with ones of types that it does not take."
    bad "stage build {\n  when = starts_with(git.tag)\n  run \"make\"\n}\n"
    good "stage build {\n  when = starts_with(git.tag, \"v\")\n  run \"make\"\n}\n"

    TOO_LATE = "CD0305" Error "value is known only while the pipeline runs";
    "A plan is fixed before anything happens, so what shapes it (durations, names, counts) must be known then. An output of a stage is \
     known only after that stage ran."
    bad "stage build {\n  run \"make\"\n  output limit: duration\n}\nstage test {\n  needs = [build]\n  timeout = stage.build.limit\n  run \"make test\"\n}\n"
    good "param limit: duration = 20m\nstage test {\n  timeout = limit\n  run \"make test\"\n}\n"

    MIXED = "CD0306" Error "values of different types together";
    "The items of a list have one type, and so have both branches of an `if`."
    bad "stage build for x in [\"a\", 1] { run \"make ${x}\" }\n"
    good "stage build for x in [\"a\", \"b\"] { run \"make ${x}\" }\n"

    NO_VALUE = "CD0307" Error "expression has no value";
    "The expression is typed well, but has no result: a division by zero, an index past the end, a number too large."
    bad "param n: int = 3\nstage build {\n  timeout = 30m / (2 - 2)\n  run \"make ${n}\"\n}\n"
    good "param n: int = 3\nstage build {\n  timeout = 60m / 2\n  run \"make ${n}\"\n}\n"

    NO_UNIT = "CD0308" Error "number without a unit";
    "Durations, percentages and sizes carry their unit: `30s`, `10%`, `256Mi`. A bare number could mean seconds to one reader and \
     minutes to another."
    bad "stage build {\n  timeout = 30\n  run \"make\"\n}\n"
    good "stage build {\n  timeout = 30m\n  run \"make\"\n}\n"

    MINUTES_AS_CPU = "CD0309" Error "`500m` is eight hours, not half a processor";
    "`m` means minutes everywhere in this language. A share of a processor is a plain number."
    bad "environment here { target docker }\nservice web {\n  image = \"acme/web:1.0\"\n  resources { cpu = 500m }\n}\nstage up { deploy web to here }\n"
    good "environment here { target docker }\nservice web {\n  image = \"acme/web:1.0\"\n  resources { cpu = 0.5 }\n}\nstage up { deploy web to here }\n"
}
