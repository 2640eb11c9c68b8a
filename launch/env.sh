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
    )
    export XLA_FLAGS="${gpu_flags[*]} ${XLA_FLAGS:-}"
    # Share of a GPU's memory that jax takes at its start; its own default is 0.75. NCCL and CUDA need the rest.
    export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
    ;;
  tpu)
    # libtpu's flags go here only: XLA_FLAGS is read by jaxlib too, which does not know them and ends the process.
    # async_collective_permute: the ring's hop runs beside the matmul; libtpu's scheduler hides latency by default.
    export LIBTPU_INIT_ARGS="--xla_enable_async_collective_permute=true ${LIBTPU_INIT_ARGS:-}"
    ;;
  cpu) ;;  # nothing to overlap: processes talk over gloo, on as many devices each as JAX_NUM_CPU_DEVICES says
  *)
    echo "SIGLAX_PLATFORM=$SIGLAX_PLATFORM is unknown; known are gpu, tpu, cpu" >&2
    exit 1
    ;;
esac
