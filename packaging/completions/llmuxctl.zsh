#compdef llmuxctl
# SPDX-License-Identifier: MIT

# The models' names, of a llmuxd that runs; none is started for it.
_llmuxctl_models() {
    local -a models
    models=(${(f)"$(busctl --auto-start=no --json=short call org.llmux /Manager \
        org.llmux.Manager ListModels 2>/dev/null |
        sed -e 's/^.*"data":\[\[\[//' -e 's/\],\[/\n/g' |
        sed -n 's/^"\(.*\)","[a-z]*","\/Model\/.*/\1/p')"})
    compadd -a models
}

_llmuxctl_jobs() {
    local -a jobs
    jobs=(${(f)"$(busctl --auto-start=no --json=short call org.llmux /Manager \
        org.llmux.Manager ListJobs 2>/dev/null | grep -o '"/Job/[0-9]*"' | tr -dc '0-9\n')"})
    compadd -a jobs
}

_llmuxctl() {
    local -a verbs common file
    verbs=(
        'status:a line for each model'
        'top:models and jobs, live'
        'show:all that is known of a model'
        'switch:make a model serve'
        'preload:make a model serve once nobody else wants its place'
        'pin:keep a model from leaving for another one'
        'unpin:let a model leave for another one'
        'checkpoint:drain a model and write it to disk'
        'park:drain a model and freeze it in memory'
        'stop:drain a model and end it, without a checkpoint'
        'warmup:start each model once and keep a checkpoint of it'
        'jobs:a line for each job that runs'
        'cancel:have jobs give up'
        'logs:the journal of a model'"'"'s unit'
        'reload:have llmuxd read its configuration again'
        'check:whether this host has what llmuxd needs'
        'config:what is wrong, what is in force'
        'version:of llmuxctl, and of the llmuxd that runs'
    )
    common=(--json '(-H --host)'{-H,--host}':host:_hosts' '(- *)'{-h,--help})
    file=('(-c --config)'{-c,--config}':file:_files')
    local curcontext=$curcontext state line
    _arguments -C $common '(- *)--version' '1:command:->verb' '*::argument:->argument'
    case $state in
        verb) _describe command verbs ;;
        argument)
            case $words[1] in
                show | switch | preload | pin | unpin | checkpoint | park | stop)
                    _arguments $common ':model:_llmuxctl_models' ;;
                warmup) _arguments $common --tune '*:model:_llmuxctl_models' ;;
                cancel) _arguments $common '*:job:_llmuxctl_jobs' ;;
                logs)
                    _arguments $common '(-f --follow)'{-f,--follow} ':model:_llmuxctl_models' ;;
                check) _arguments --json --help $file '--fix' '(-y --yes)'{-y,--yes} ;;
                config) _arguments --json --help $file ':command:(check show)' ;;
                *) _arguments $common ;;
            esac
            ;;
    esac
}

_llmuxctl "$@"
