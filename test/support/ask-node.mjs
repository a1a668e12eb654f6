// Asks a node's service as a task does, from a job of Slurm's: node ask-node.mjs SOCKET QUESTIONS ANSWERS
import { generateKeyPairSync, randomBytes } from "node:crypto"
import { readFileSync, writeFileSync } from "node:fs"
import { connect } from "node:net"
import { text } from "node:stream/consumers"

const [socketPath, questions, answers] = process.argv.slice(2)
const publicKey = generateKeyPairSync("x25519").publicKey.export({ type: "spki", format: "der" }).subarray(12)
const own = {
  version: 1,
  slurmJob: Number(process.env.SLURM_JOB_ID),
  array: Number(process.env.SLURM_ARRAY_JOB_ID),
  element: Number(process.env.SLURM_ARRAY_TASK_ID),
  publicKey: publicKey.toString("base64"),
}
const found = []
for (const { request, bundle } of JSON.parse(readFileSync(questions, "utf8"))) {
  const socket = connect(socketPath)
  const nonce = randomBytes(16).toString("base64")
  socket.end(`${JSON.stringify({ request: JSON.stringify({ ...own, nonce, ...request }), bundle })}\n`)
  found.push(JSON.parse(await text(socket)))
}
writeFileSync(answers, JSON.stringify(found))
