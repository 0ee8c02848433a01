from rlt_client.cli import main

main()
