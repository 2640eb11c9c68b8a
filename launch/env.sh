# Environment of a run, sourced by every launcher. What is set already wins.
#
# An unknown XLA flag ends the process, and each platform knows its own: so flags are set for the platform at hand only.
# SIGLAX_PLATFORM: gpu | tpu | cpu; found by its device files when unset.
# SIGLAX: the command to start, "siglax" when unset; "/opt/venv/bin/python -m siglax.commands.cli" for example.
# shellcheck shell=bash

if [[ -z ${SIGLAX_PLATFORM:-} ]]; then
  if compgen -G "/dev/nvidia[0-9]*" > /dev/null; then
    SIGLAX_PLATFORM=gpu
  elif compgen -G "/dev/accel[0-9]*" > /dev/null || compgen -G "/dev/vfio/[0-9]*" > /dev/null; then
    SIGLAX_PLATFORM=tpu
  else
    SIGLAX_PLATFORM=cpu
  fi
fi
export SIGLAX_PLATFORM
# shellcheck disable=SC2034  # used by the launchers
read -ra siglax <<< "${SIGLAX:-siglax}"

case $SIGLAX_PLATFORM in
  gpu)
    gpu_flags=(
      # Moves the start of a collective before work that does not need it, and its end after: the ring's next texts
      # travel while the tile at hand is multiplied, and fsdp's weights are gathered while the block before computes.
      --xla_gpu_enable_latency_hiding_scheduler=true
      # Unrolls loops by two, so that the ring and the scan over blocks swap two buffers and copy none.
      --xla_gpu_enable_while_loop_double_buffering=true
      # Moves fsdp's gather of the weights of a block to the turn of the loop before, beside which it runs. (Its
      # reduce-scatter of gradients is pipelined by default.)
      --xla_gpu_enable_pipelined_all_gather=true
      # Moves the sum of a block's gradients over "data" to the next turn of the loop, beside which it runs.
      --xla_gpu_enable_pipelined_all_reduce=true
    )
    export XLA_FLAGS="${gpu_flags[*]} ${XLA_FLAGS:-}"
    # Share of a GPU's memory that jax takes at its start; its own default is 0.75. NCCL and CUDA need the rest.
    export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
    ;;
  tpu)
    # libtpu's flags go here only: XLA_FLAGS is read by jaxlib too, which does not know them and ends the process.
    tpu_flags=(
      # The ring's hop runs beside the matmul; libtpu's scheduler hides latency by default, and gathers are asynchronous.
      --xla_enable_async_collective_permute=true
      # The sum of gradients over "data", which crosses from slice to slice, runs beside the rest of the backward pass,
      # and the next flag allows that for gradients of different sizes. MaxText sets both for several slices.
      --xla_tpu_enable_data_parallel_all_reduce_opt=true
      --xla_tpu_data_parallel_opt_different_sized_ops=true
    )
    export LIBTPU_INIT_ARGS="${tpu_flags[*]} ${LIBTPU_INIT_ARGS:-}"
    ;;
  cpu) ;;  # nothing to overlap: processes talk over gloo, on as many devices each as JAX_NUM_CPU_DEVICES says
  *)
    echo "SIGLAX_PLATFORM=$SIGLAX_PLATFORM is unknown; known are gpu, tpu, cpu" >&2
    exit 1
    ;;
esac
