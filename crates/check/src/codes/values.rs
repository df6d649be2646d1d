//! CD04xx: inputs and values.

codes! {
    MISSING_INPUT = "CD0401" Error "missing input";
    "A parameter without a default must be given by `--set NAME=VALUE` or by the environment variable `CDPIPE_SET_NAME`. All that are \
     missing are told at once, before anything runs. (The example is clean for `check`; it is `plan` and `run` that need the value.)"
    bad "param version: string\nstage build { run \"make ${version}\" }\n"
    good "param version: string = \"v1.0.0\"\nstage build { run \"make ${version}\" }\n"

    UNKNOWN_INPUT = "CD0402" Error "unknown input";
    "A value is given for a parameter that the pipeline does not declare: mostly a misspelling, and the parameter that was meant would \
     have kept its default. (The example is clean for `check`; `--set verison=v2` shows it.)"
    bad "param version: string = \"v1.0.0\"\nstage build { run \"make ${version}\" }\n"
    good "param version: string = \"v1.0.0\"\nstage build { run \"make ${version}\" }\n"

    UNFIT_INPUT = "CD0403" Error "input does not fit its parameter";
    "The text that was given can't be read as the parameter's type, does not match its pattern, or is not among the values it may \
     have. A default is held to the same."
    bad "param version: string matches '^v[0-9]+$' = \"latest\"\nstage build { run \"make ${version}\" }\n"
    good "param version: string matches '^v[0-9]+$' = \"v1\"\nstage build { run \"make ${version}\" }\n"

    OUT_OF_RANGE = "CD0404" Error "value out of range";
    "The value has the right type, but is smaller or larger than anything that could be meant."
    bad "pipeline shop { max_parallel = 0 }\nstage build { run \"make\" }\n"
    good "pipeline shop { max_parallel = 4 }\nstage build { run \"make\" }\n"

    UNKNOWN_MEMBER = "CD0405" Error "word is not among those the setting takes";
    "The setting takes one of a few words, written without quotes."
    bad "pipeline shop { mode = continuous }\nstage build { run \"make\" }\n"
    good "pipeline shop { mode = deployment }\nstage build { run \"make\" }\n"

    BAD_REGEX = "CD0406" Error "not a regular expression";
    "The pattern can't be read as a regular expression (the syntax is that of RE2: no look-around, no back-references). `matches` \
     searches anywhere in the text; `^` and `$` bind it to the ends."
    bad "param version: string matches '^v(\\d+$'\nstage build { run \"make ${version}\" }\n"
    good "param version: string matches '^v(\\d+)$' = \"v1\"\nstage build { run \"make ${version}\" }\n"

    BAD_GLOB = "CD0407" Error "not a glob";
    "The path pattern can't be read: `*` stands for any part of a name, `**` for any folders, `[a-z]` for one character, `{a,b}` for one of \
     these."
    bad "environment prod { target kubernetes { context = \"prod\" }, protected = false }\nstage up { apply \"k8s/[.yaml\" to prod }\n"
    good "environment test { target kubernetes { context = \"test\" } }\nstage up { apply \"k8s/*.yaml\" to test }\n"

    BAD_WINDOW = "CD0408" Error "not a window of the week";
    "A window is `Fri 16:00 .. Mon 08:00 ZONE` (from one moment of the week to another) or `Mon..Fri 09:00-17:00 ZONE` (a time of each of \
     these days). ZONE is an IANA time zone such as `Europe/Madrid` or `UTC`; without one, two readers would freeze at different hours."
    bad "gate hours { window \"Mon..Fri 09:00-17:00 Europe/Madird\" }\nstage build { needs = [hours]; run \"make\" }\n"
    good "gate hours { window \"Mon..Fri 09:00-17:00 Europe/Madrid\" }\nstage build { needs = [hours]; run \"make\" }\n"

    BAD_FORM = "CD0409" Error "string is not of the form the setting takes";
    "The setting takes a string of a certain form: a URL, a path that starts with `/`, an address with a port, an image."
    bad "metrics shop {\n  source prometheus { url = \"prometheus\" }\n  errors: percent = 'errors'\n}\ngate calm { metric errors < 1% for 10m }\nstage go { needs = [calm]; run \"make\" }\n"
    good "metrics shop {\n  source prometheus { url = \"http://prometheus:9090\" }\n  errors: percent = 'errors'\n}\ngate calm { metric errors < 1% for 10m }\nstage go { needs = [calm]; run \"make\" }\n"

    EMPTY_LIST = "CD0410" Error "empty list";
    "A matrix over an empty list has no stage at all, and approvals by nobody can't be given."
    bad "stage build for os in [] { run \"make ${os}\" }\n"
    good "stage build for os in [\"linux\"] { run \"make ${os}\" }\n"

    DUPLICATE_ITEM = "CD0411" Error "value twice in a list";
    "The same value stands twice in a list whose values must differ: two stages of a matrix would have the same name and do the same work."
    bad "stage build for os in [\"linux\", \"linux\"] { run \"make ${os}\" }\n"
    good "stage build for os in [\"linux\", \"darwin\"] { run \"make ${os}\" }\n"

    NEEDS_ENVIRONMENT = "CD0412" Error "value depends on the environment";
    "The service's setting reads `environment.…`, and in this place no environment is known. Inside `deploy … to ENVIRONMENT { }` one is."
    bad "environment here { target local }\nservice web { command = [\"./web\"], version = environment.name }\nstage up {\n  run \"echo ${web.version}\"\n  deploy web to here\n}\n"
    good "environment here { target local }\nservice web { command = [\"./web\"], version = environment.name }\nstage up {\n  deploy web to here { validate { run \"echo ${web.version}\" } }\n}\n"
}
