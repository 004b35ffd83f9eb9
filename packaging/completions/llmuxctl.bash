# SPDX-License-Identifier: MIT
# bash completion for llmuxctl

# The models' names, a line each, of a llmuxd that runs; none is started for it.
_llmuxctl_models() {
    busctl --auto-start=no --json=short call org.llmux /Manager org.llmux.Manager ListModels \
        2>/dev/null |
        sed -e 's/^.*"data":\[\[\[//' -e 's/\],\[/\n/g' |
        sed -n 's/^"\(.*\)","[a-z]*","\/Model\/.*/\1/p'
}

_llmuxctl() {
    local current=${COMP_WORDS[COMP_CWORD]} verb='' word words=()
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        if [[ $word != -* ]]; then
            verb=$word
            break
        fi
    done
    case $verb in
        '') words=(status switch checkpoint park stop warmup logs check --help --version) ;;
        status) words=(--json --help) ;;
        switch | checkpoint | park | stop | warmup)
            if [[ $current == -* ]]; then words=(--help); else mapfile -t words < <(_llmuxctl_models); fi
            ;;
        logs)
            if [[ $current == -* ]]; then
                words=(--follow --help)
            else
                mapfile -t words < <(_llmuxctl_models)
            fi
            ;;
        check)
            if [[ ${COMP_WORDS[COMP_CWORD-1]} == -c || ${COMP_WORDS[COMP_CWORD-1]} == --config ]]; then
                compopt -o filenames 2>/dev/null
                mapfile -t COMPREPLY < <(compgen -f -- "$current")
                return
            fi
            words=(--config --json --help)
            ;;
    esac
    COMPREPLY=()
    for word in "${words[@]}"; do
        # Not compgen -W: it would expand what a name has in it.
        if [[ $word == "$current"* ]]; then
            COMPREPLY+=("$(printf '%q' "$word")")
        fi
    done
}

complete -F _llmuxctl llmuxctl
