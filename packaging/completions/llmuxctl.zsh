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

_llmuxctl() {
    local -a verbs
    verbs=(
        'status:a line for each model'
        'switch:make a model serve'
        'checkpoint:drain a model and write it to disk'
        'park:drain a model and freeze it in memory'
        'stop:drain a model and end it, without a checkpoint'
        'warmup:start each model once and keep a checkpoint of it'
        'logs:the journal of a model'"'"'s unit'
        'check:whether this host has what llmuxd needs'
    )
    if (( CURRENT == 2 )); then
        _describe command verbs -- '(--help --version)'
        return
    fi
    local verb=$words[2]
    shift words
    (( CURRENT-- ))
    case $verb in
        status) _arguments --help --json ;;
        switch | checkpoint | park | stop) _arguments --help ':model:_llmuxctl_models' ;;
        warmup) _arguments --help '*:model:_llmuxctl_models' ;;
        logs) _arguments --help '(-f --follow)'{-f,--follow} ':model:_llmuxctl_models' ;;
        check) _arguments --help --json '(-c --config)'{-c,--config}':file:_files' ;;
    esac
}

_llmuxctl "$@"
