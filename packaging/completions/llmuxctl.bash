# SPDX-License-Identifier: MIT
# bash completion for llmuxctl

# The models' names, a line each, of a llmuxd that runs; none is started for it.
_llmuxctl_models() {
    busctl --auto-start=no --json=short call org.llmux /Manager org.llmux.Manager ListModels \
        2>/dev/null |
        sed -e 's/^.*"data":\[\[\[//' -e 's/\],\[/\n/g' |
        sed -n 's/^"\(.*\)","[a-z]*","\/Model\/.*/\1/p'
}

_llmuxctl_jobs() {
    busctl --auto-start=no --json=short call org.llmux /Manager org.llmux.Manager ListJobs \
        2>/dev/null | grep -o '"/Job/[0-9]*"' | tr -dc '0-9\n'
}

_llmuxctl() {
    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}
    local verb='' word words=() skip=''
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        if [[ $skip ]]; then
            skip=''
        elif [[ $word == -H || $word == --host ]]; then
            skip=yes
        elif [[ $word != -* ]]; then
            verb=${verb:+$verb }$word
        fi
    done
    case $before in
        -H | --host)
            mapfile -t COMPREPLY < <(compgen -A hostname -- "$current")
            return
            ;;
        -c | --config)
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -f -- "$current")
            return
            ;;
    esac
    local common=(--json --host --help)
    case $verb in
        '')
            words=(status top show switch preload pin unpin checkpoint park stop warmup jobs cancel logs reload check
                   config version)
            if [[ $current == -* ]]; then words=("${common[@]}" --version); fi
            ;;
        show | switch | preload | pin | unpin | checkpoint | park | stop | warmup | warmup\ *)
            if [[ $current == -* ]]; then
                words=("${common[@]}")
            else
                mapfile -t words < <(_llmuxctl_models)
            fi
            ;;
        cancel | cancel\ *)
            if [[ $current == -* ]]; then
                words=("${common[@]}")
            else
                mapfile -t words < <(_llmuxctl_jobs)
            fi
            ;;
        logs)
            if [[ $current == -* ]]; then
                words=(--follow "${common[@]}")
            else
                mapfile -t words < <(_llmuxctl_models)
            fi
            ;;
        check) words=(--fix --yes --config --json --help) ;;
        config\ check | config\ show) words=(--config --json --help) ;;
        config) words=(check show) ;;
        status | top | jobs | reload | version) words=("${common[@]}") ;;
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
